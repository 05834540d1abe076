"""Administration: pin a variant, look for a newer portfolio; behind a token."""

from __future__ import annotations

from fastapi import APIRouter

from serve_app.service import EdgeService


def router(service: EdgeService) -> APIRouter:
    """The routes, on ``service``."""
    return APIRouter()
