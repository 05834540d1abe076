"""Calibrations of given times."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from shifter.node import Node
from shifter.switching.calibration import BatchTime, Calibration, ThreadTimes, VariantTimes
from shifter.values import Latency

NODE = Node("a CPU", 4, "onnxruntime 1.0.0")
DIGEST = "0123456789abcdef" * 4


def latency(milliseconds: float) -> Latency:
    return Latency(milliseconds, milliseconds, milliseconds, milliseconds, 10)


def thread_times(points: Sequence[tuple[int, float]], threads: int = 1) -> ThreadTimes:
    hot = tuple(BatchTime(images=images, latency=latency(1e3 * seconds)) for images, seconds in points)
    return ThreadTimes(threads=threads, hot=hot, alternating=None)


def variant_times(name: str, *times: ThreadTimes) -> VariantTimes:
    switch = latency(10.0)
    return VariantTimes(
        name=name, memory_bytes=1000, inflate=switch, build=switch, switch=switch, times=times
    )


def calibration(
    points: Mapping[str, Sequence[tuple[int, float]]],
    *,
    threads: Sequence[int] = (1,),
    portfolio: str = DIGEST,
    node: Node = NODE,
    measured: datetime = datetime(2024, 1, 2, 3, 4, tzinfo=UTC),
) -> Calibration:
    """Per variant, images in a call and seconds; the same with each number of threads."""
    variants = tuple(
        variant_times(name, *(thread_times(some, number) for number in threads))
        for name, some in points.items()
    )
    return Calibration(portfolio=portfolio, node=node, measured=measured, variants=variants)
