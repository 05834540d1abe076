"""The Open Inference Protocol, version 2."""

from __future__ import annotations

from fastapi import APIRouter

from serve_app.service import EdgeService


def router(service: EdgeService) -> APIRouter:
    """The routes, on ``service``."""
    return APIRouter()
