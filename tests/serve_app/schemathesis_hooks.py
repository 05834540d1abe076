"""Bodies that the schema allows, made such that the model of the tests reads them."""

from __future__ import annotations

from typing import Any

import schemathesis


@schemathesis.hook
def before_call(_: schemathesis.HookContext, case: schemathesis.Case, __: dict[str, Any]) -> None:
    if case.path != "/predict" or case.meta is None or case.meta.generation.mode.is_negative:
        return
    if case.media_type == "application/json" and isinstance(case.body, dict) and case.body.get("images"):
        case.body = {"images": [[[7] * 8] * 8] * min(8, len(case.body["images"]))}
