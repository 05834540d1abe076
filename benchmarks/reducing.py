"""One reduction in this process, timed in its parts, counted and proved."""

from __future__ import annotations

import time
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shifter.pruning.analyse import analyse
from shifter.pruning.exactness import evaluate_float64, relative_error
from shifter.pruning.graph import parse_model
from shifter.pruning.plan import PrunePlan, plan_network
from shifter.pruning.profile import Engine, parameter_names
from shifter.pruning.read import read_network
from shifter.pruning.rebuild import rebuild, rebuild_graph, rebuild_tensors

Arrays = dict[str, NDArray[Any]]

WARM_UP, CALLS = 5, 20


class Reducer:
    """A graph that is already read, and its sparse tensors."""

    def __init__(self, architecture: bytes, tensors: Arrays, round_to: int, threads: int = 2) -> None:
        self.architecture, self.tensors = architecture, tensors
        self.round_to, self.threads = round_to, threads
        self.network = read_network(parse_model(architecture))

    def once(self) -> dict[str, float]:
        """Seconds of each part, and of the processor in all."""
        cpu = time.process_time()
        marks = [time.perf_counter()]
        analysis = analyse(self.network, self.tensors, self.threads)
        marks.append(time.perf_counter())
        plan = plan_network(self.network, analysis, self.round_to)
        marks.append(time.perf_counter())
        made = rebuild(plan, self.tensors, threads=self.threads)
        marks.append(time.perf_counter())
        seconds = dict(zip(("analyse", "plan", "rebuild"), np.diff(marks).tolist(), strict=True))
        assert made
        return seconds | {"CPU": time.process_time() - cpu}

    def plan(self) -> PrunePlan:
        return plan_network(self.network, analyse(self.network, self.tensors), self.round_to)

    def made(self, dtype: Any = np.float32) -> tuple[bytes, Arrays]:
        """The reduced graph and all that it reads."""
        plan = self.plan()
        return (
            rebuild_graph(self.architecture, plan),
            rebuild_tensors(self.architecture, plan, self.tensors, dtype),
        )

    def counts(self) -> dict[str, int]:
        """Parameters: of the dense network, not zero, and after reduction."""
        names = parameter_names(self.architecture)
        return {
            "dense": sum(self.tensors[name].size for name in names),
            "nonzero": sum(int(np.count_nonzero(self.tensors[name])) for name in names),
            "reduced": sum(value.size for value in self.made()[1].values()),
        }

    def error(self, images: NDArray[np.float32]) -> float:
        """In float64, by DESIGN's measure."""
        reference = evaluate_float64(self.architecture, self.tensors, images)
        return relative_error(evaluate_float64(*self.made(np.float64), images), reference)


def timed_calls(engine: Engine, images: NDArray[np.float32]) -> float:
    """Milliseconds of one call: the median of a few after a warm-up."""
    for _ in range(WARM_UP):
        engine.run(images)
    taken = []
    for _ in range(CALLS):
        began = time.perf_counter()
        engine.run(images)
        taken.append(1000 * (time.perf_counter() - began))
    return float(np.median(taken))


def share_for(structural: float) -> float:
    """Share of the filters of VGG-16's layers of 512 that stays where so many parameters do in all.

    Layers of 512 are where iterative magnitude pruning empties whole filters first.
    """

    def count(share: float) -> float:
        deep = round(share * 512)
        widths = [3, 64, 64, 128, 128, 256, 256, 256, *[deep] * 6]
        return sum(9 * into * out + 2 * out for into, out in pairwise(widths)) + 10 * deep + 10

    shares = np.arange(1, 513) / 512
    return float(shares[np.argmin([abs(count(share) - structural) for share in shares])])
