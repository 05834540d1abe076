"""What every answer carries, whatever the protocol."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from fastapi.responses import Response

from serve_app.service import Inferred

VARIANT_HEADER: Final = "X-Shifter-Variant"
PORTFOLIO_HEADER: Final = "X-Shifter-Portfolio"


def respond(inferred: Inferred, media_type: str, headers: Mapping[str, str] | None = None) -> Response:
    """The response, which names the variant that computed it and that one's portfolio."""
    named = {VARIANT_HEADER: inferred.variant, PORTFOLIO_HEADER: inferred.portfolio}
    return Response(inferred.content, media_type=media_type, headers={**named, **(headers or {})})
