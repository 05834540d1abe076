"""The schema of the HTTP interface, to be written down: ``make surface`` does so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

from serve_app.app import create_app
from serve_app.service import EdgeService
from serve_app.settings import Settings

PINNED: Final = Path(__file__).with_suffix(".json")


def described() -> str:
    """What ``GET /openapi.json`` answers, whatever is served: no portfolio is needed to know it."""
    service = EdgeService.__new__(EdgeService)
    service.settings = Settings(portfolio="any.zip")
    service.limits = service.settings.limits
    service.observers = []
    service.admin_token = None
    return json.dumps(create_app(service).openapi(), indent=1, sort_keys=True, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    print(described(), end="")
