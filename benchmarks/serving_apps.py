"""What the edge application is compared with, as Ray Serve applications of the same layout: one replica.

``from __future__ import annotations`` must stay away from this module, as from `serve_app.edge`.
"""

import asyncio
import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from ray import serve
from ray.serve import Application
from starlette.requests import Request
from starlette.responses import Response

from shifter.portfolio import Portfolio
from shifter.switching.engine import OnnxEngine

VARIANT = "X-Shifter-Variant"
MAX_INSIDE = 64
"""As the edge application's queue is by default."""


class Rival(BaseModel):
    """Arguments of the builders.

    Args:
        portfolio: a package's file. threads: cores that one inference may use.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    portfolio: str
    threads: int = 1


def _engine(portfolio: Portfolio, name: str, threads: int) -> OnnxEngine:
    variant = portfolio.inflate(name)
    return OnnxEngine(variant.graph, variant.tensors, threads=threads)


class _Rival:
    """Reads float32 pixels, normalised, one image after another; answers float32 logits."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = Rival.model_validate(settings)
        self.portfolio = Portfolio.open(self.settings.portfolio)
        self._one_by_one = threading.Lock()

    def pixels(self, body: bytes) -> NDArray[np.float32]:
        return np.frombuffer(body, np.float32).reshape(-1, *self.portfolio.input_spec.shape)

    def infer(self, engine: OnnxEngine, images: NDArray[np.float32]) -> NDArray[np.float32]:
        with self._one_by_one:
            return engine.run(images)


class Noop:
    """Does nothing, as fast as Serve lets it."""

    async def __call__(self, _: Request) -> Response:
        return Response(b"")


class Multiplexed(_Rival):
    """Ray Serve's own way to have several models: the client names the one that it wants.

    Three are loaded at a time: the edge application has the active one and its neighbours.
    """

    @serve.multiplexed(max_num_models_per_replica=3)  # type: ignore[untyped-decorator]
    async def load(self, name: str) -> OnnxEngine:
        return await asyncio.to_thread(_engine, self.portfolio, name, self.settings.threads)

    async def __call__(self, request: Request) -> Response:
        name = serve.get_multiplexed_model_id()
        engine = await self.load(name)
        answer = await asyncio.to_thread(self.infer, engine, self.pixels(await request.body()))
        return Response(answer.tobytes(), headers={VARIANT: name})


class Ensemble(_Rival):
    """The paper's: all variants compute every request, and the most confident one answers."""

    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__(settings)
        names = self.portfolio.names
        self._engines = {name: _engine(self.portfolio, name, self.settings.threads) for name in names}

    async def __call__(self, request: Request) -> Response:
        images = self.pixels(await request.body())
        answer = await asyncio.to_thread(self._vote, images)
        return Response(answer.tobytes(), headers={VARIANT: "ensemble"})

    def _vote(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        all_logits = np.stack([self.infer(engine, images) for engine in self._engines.values()])
        shifted = np.exp(all_logits - all_logits.max(axis=2, keepdims=True))
        confidence = (shifted / shifted.sum(axis=2, keepdims=True)).max(axis=2)
        best: NDArray[np.float32] = all_logits[confidence.argmax(axis=0), np.arange(len(images))]
        return best


def _application(name: str, of: Any, *arguments: Any) -> Application:
    deployment = serve.deployment(
        name=name,
        num_replicas=1,
        max_ongoing_requests=MAX_INSIDE,
        max_queued_requests=MAX_INSIDE,
        ray_actor_options={"num_cpus": 0.1},
    )
    return deployment(of).bind(*arguments)


def noop(_: dict[str, Any]) -> Application:
    """Builds `Noop`."""
    return _application("noop", Noop)


def multiplexed(settings: Rival) -> Application:
    """Builds `Multiplexed`."""
    return _application("multiplexed", Multiplexed, settings.model_dump())


def ensemble(settings: Rival) -> Application:
    """Builds `Ensemble`."""
    return _application("ensemble", Ensemble, settings.model_dump())
