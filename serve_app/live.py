"""The page to look at, and what it draws."""

from __future__ import annotations

from fastapi import APIRouter

from serve_app.service import EdgeService


def router(service: EdgeService) -> APIRouter:
    """The routes, on ``service``."""
    return APIRouter()
