"""What is served in a benchmark: a package, and a request to it in the protocol that the service has."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Literal
from urllib.error import HTTPError
from urllib.request import urlopen

import numpy as np
from numpy.typing import NDArray

from benchmarks.serving_client import Asked
from benchmarks.serving_node import Node
from jobs.protocols import encode
from shifter.portfolio import Portfolio
from shifter.switching.engine import OnnxEngine

_BINARY = "application/octet-stream"
_SAMPLES = 20


class Subject:
    """A portfolio and the images of a request.

    Args:
        images: in each request. 0: as many as take the variant ``of`` that end of the portfolio
            ``at_least_s`` on one core here.
    """

    def __init__(
        self,
        path: Path,
        *,
        images: int,
        at_least_s: float = 0.0,
        of: Literal["smallest", "largest"] = "largest",
    ) -> None:
        self.path = path.absolute()
        self.portfolio = Portfolio.open(path.read_bytes())
        self.model = self.portfolio.model
        name = self.portfolio.names[0 if of == "smallest" else -1]
        self.images = images or self._as_many_as_take(at_least_s, name)

    def _as_many_as_take(self, seconds: float, name: str) -> int:
        engine, images = self.engine(name), 1
        while (took := self._median(engine, images)) < seconds:
            images = max(images + 1, math.ceil(0.9 * images * seconds / took))
        return images

    def _median(self, engine: OnnxEngine, images: int) -> float:
        pixels = self._normalised(images)
        engine.run(pixels)
        return float(np.median([_seconds(engine, pixels) for _ in range(_SAMPLES)]))

    def engine(self, name: str) -> OnnxEngine:
        """As the service has it: one core, optimised."""
        variant = self.portfolio.inflate(name)
        return OnnxEngine(variant.graph, variant.tensors)

    def timed(self, engine: OnnxEngine, seconds: float) -> list[float]:
        """Seconds of each call with the request's images, for so long."""
        pixels = self._normalised(self.images)
        end = time.perf_counter() + seconds
        found: list[float] = []
        while time.perf_counter() < end:
            found.append(_seconds(engine, pixels))
        return found

    def ask(self, node: Node, application: str) -> Asked:
        """A request to the edge application: v2's binary tensors if it has them, else ``/predict``."""
        url = node.url(application)
        model = f"{url}/v2/models/{self.model}"
        try:
            with urlopen(model, timeout=30) as answer:
                told = json.load(answer)
        except HTTPError as error:
            if error.code != 404:
                raise
            with error:
                body = encode(self._pixels(self.images).round())
            return Asked(f"{url}/predict", {"Content-Type": "application/json"}, body)
        (read,) = told["inputs"]
        pixels = self._pixels(self.images).astype(np.float32).tobytes()
        tensor = {
            "name": read["name"],
            "shape": [self.images, *self.portfolio.input_spec.shape],
            "datatype": "FP32",
            "parameters": {"binary_data_size": len(pixels)},
        }
        # Only what a client has to ask for: all outputs, as binary data.
        head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
        headers = {"Content-Type": _BINARY, "Inference-Header-Content-Length": str(len(head))}
        return Asked(f"{model}/infer", headers, head + pixels)

    def ask_rival(self, node: Node, application: str) -> Asked:
        """The same images to one of `benchmarks.serving_apps`."""
        body = self._normalised(self.images).tobytes()
        return Asked(node.url(application), {"Content-Type": _BINARY}, body)

    def kind(self, asked: Asked) -> str:
        """The protocol of a request."""
        return "v2, binary" if asked.headers["Content-Type"] == _BINARY else "predict, JSON"

    def _pixels(self, images: int) -> NDArray[np.float64]:
        spec = self.portfolio.input_spec
        return np.random.default_rng(0).uniform(0, spec.pixel_max, (images, *spec.shape))

    def _normalised(self, images: int) -> NDArray[np.float32]:
        return self.portfolio.input_spec.normalise(self._pixels(images))


def _seconds(engine: OnnxEngine, pixels: NDArray[np.float32]) -> float:
    start = time.perf_counter()
    engine.run(pixels)
    return time.perf_counter() - start
