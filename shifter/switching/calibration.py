"""What was measured of a portfolio's variants on the node that serves them (``jobs/calibrate.py``).

A small JSON file per package and kind of node. It lies beside the package, where that is a file in
a folder that can be written to, or else in the user's cache. A service prefers it to the profiles.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from pathlib import Path
from statistics import fmean, median
from typing import Annotated, Final, Literal, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, model_validator

from shifter.disk import Disk
from shifter.errors import CalibrationError, StoreError
from shifter.node import Node, this_node
from shifter.place import scheme_of
from shifter.switching.ratios import OUTLIER
from shifter.user_cache import cache_folder
from shifter.values import Latency, Profile

FORMAT: Final = "shifter-calibration"
VERSION: Final = 1

_LARGEST_FILE = 4 << 20
_SUFFIX = ".calibration.json"
# Milliseconds that one call can take. What lies outside is no time of a network.
_SHORTEST, _LONGEST = 1e-6, 1e8


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class BatchTime(_Record):
    """The engine's time for so many images in one call, again and again (*hot*).

    Args:
        mean_ms: `mean_of` all calls, which capacity follows from; None in a file of before it was kept.
    """

    images: Annotated[int, Field(ge=1, le=1 << 20)]
    latency: Latency
    mean_ms: Annotated[float, Field(ge=_SHORTEST, le=_LONGEST)] | None = None

    @property
    def seconds(self) -> float:
        """The mean, or else the median."""
        return (self.latency.p50_ms if self.mean_ms is None else self.mean_ms) / 1e3


class ThreadTimes(_Record):
    """With so many threads in one call.

    Args:
        hot: the batch sizes, ascending, one image first.
        alternating: one image, when the call before was another variant's, as after a switch: nothing
            of this one is left in the caches. None where there is no other.
    """

    threads: Annotated[int, Field(ge=1, le=1 << 10)]
    hot: Annotated[tuple[BatchTime, ...], Field(min_length=1)]
    alternating: Latency | None


class VariantTimes(_Record):
    """One variant.

    Args:
        memory_bytes: resident bytes that its loaded engine adds to a process.
        inflate, build: from deflated to tensors, and from these to a warm engine, optimised later.
        switch: both together, which is how long a switch to it takes if it was not inflated ahead.
        times: by threads, ascending.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    memory_bytes: Annotated[int, Field(ge=0)]
    inflate: Latency
    build: Latency
    switch: Latency
    times: Annotated[tuple[ThreadTimes, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        _ascending(f"threads of {self.name}", [timed.threads for timed in self.times])
        for timed in self.times:
            sizes = [at.images for at in timed.hot]
            _ascending(f"batch sizes of {self.name}", sizes)
            if sizes[0] != 1:
                raise ValueError(f"the batch sizes of {self.name} begin with {sizes[0]}, not with 1")
        for latency in self._latencies():
            times = [
                value for key, value in asdict(latency).items() if key != "samples" and value is not None
            ]
            if not (
                all(_SHORTEST <= time <= _LONGEST for time in times)
                and latency.p50_low_ms <= latency.p50_ms <= latency.p50_high_ms
            ):
                raise ValueError(f"of {self.name}, not a latency with its interval: {latency}")
        return self

    def _latencies(self) -> Iterable[Latency]:
        yield from (self.inflate, self.build, self.switch)
        for timed in self.times:
            yield from (at.latency for at in timed.hot)
            if timed.alternating is not None:
                yield timed.alternating


class Calibration(_Record):
    """All that was measured of one portfolio on one node.

    Args:
        portfolio: sha256 of the package. measured: when.
        variants: those that run on this node, smallest first; all with the same threads.
    """

    format: Literal["shifter-calibration"] = FORMAT
    version: Literal[1] = VERSION
    portfolio: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    node: Node
    measured: AwareDatetime
    variants: Annotated[tuple[VariantTimes, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names = [variant.name for variant in self.variants]
        if len(set(names)) < len(names):
            raise ValueError(f"variants must have different names: {names}")
        if any(_threads(variant) != self.threads for variant in self.variants):
            raise ValueError("every variant must be measured with the same threads")
        # UTC, so that dates read alike.
        if self.measured.utcoffset() != timedelta(0):
            raise ValueError(f"the date must be in UTC: {self.measured}")
        return self

    @property
    def threads(self) -> tuple[int, ...]:
        """Numbers of threads that were measured, ascending."""
        return _threads(self.variants[0])

    def for_threads(self, threads: int) -> Calibration:
        """What was measured with so many threads.

        Raises:
            CalibrationError: if nothing was.
        """
        if threads not in self.threads:
            known = " and ".join(map(str, self.threads))
            raise CalibrationError(
                f"it was measured with {known} threads, not {threads}: calibrate with --threads {threads}"
            )
        return self.model_copy(
            update={
                "variants": tuple(
                    variant.model_copy(
                        update={"times": tuple(t for t in variant.times if t.threads == threads)}
                    )
                    for variant in self.variants
                )
            }
        )

    def check(self, digest: str, node: Node) -> None:
        """Raises CalibrationError unless it is of this package, and was measured on such a node."""
        if self.portfolio != digest:
            raise CalibrationError(f"it is of the package {self.portfolio}, not of {digest}")
        if (self.node.cpu, self.node.cores) != (node.cpu, node.cores):
            raise CalibrationError(f"it was measured on another node ({self.node}), not on this ({node})")

    def seconds(self) -> Mapping[str, Sequence[tuple[int, float]]]:
        """Per variant, images in a call and mean seconds, of the fewest threads that were measured."""
        return {
            variant.name: [(at.images, at.seconds) for at in variant.times[0].hot]
            for variant in self.variants
        }

    def apply(self, profiles: Mapping[str, Profile]) -> dict[str, Profile]:
        """With the memory that engines take on this node; a variant that was not measured as it is."""
        memory = {variant.name: variant.memory_bytes for variant in self.variants}
        return {
            # Where little is added, blocks that were free are used again, and not all of it is seen.
            name: replace(one, memory_bytes=max(memory[name], one.tensor_bytes)) if name in memory else one
            for name, one in profiles.items()
        }

    def to_json(self) -> bytes:
        """Readable; keys in the order of the fields."""
        return (json.dumps(self.model_dump(mode="json"), indent=1, allow_nan=False) + "\n").encode()

    @classmethod
    def from_json(cls, text: bytes) -> Calibration:
        """Reads and checks.

        Raises:
            CalibrationError: if the text is not :meth:`to_json` of this version.
        """
        try:
            header = json.loads(text)
        except (ValueError, RecursionError) as problem:
            raise CalibrationError(f"it is no JSON: {problem}") from problem
        if not isinstance(header, dict) or header.get("format") != FORMAT:
            raise CalibrationError(f"it is no calibration: its 'format' is not {FORMAT!r}")
        if header.get("version") != VERSION:
            raise CalibrationError(
                f"it has format version {header.get('version')!r}, this release reads {VERSION}: "
                "calibrate again"
            )
        try:
            return cls.model_validate_json(text)
        except ValidationError as problem:
            first = problem.errors(include_url=False)[0]
            place = ".".join(map(str, first["loc"])) or "calibration"
            raise CalibrationError(f"it is broken: {place}: {first['msg']}") from problem

    @classmethod
    def read(cls, path: Path) -> Calibration:
        """The calibration in a file.

        Raises:
            CalibrationError: naming the file, if it cannot be read or is none.
        """
        try:
            return cls.from_json(_read(path))
        except OSError as problem:
            raise CalibrationError(f"{path}: it cannot be read: {problem.strerror or problem}") from problem
        except CalibrationError as problem:
            raise CalibrationError(f"{path}: {problem}") from problem

    def write(self, paths: Sequence[Path]) -> Path:
        """Writes the file under the first of ``paths`` that can be written, whole or not at all.

        Raises:
            StoreError: if none can.
        """
        refusals = []
        for path in paths:
            try:
                _write(path, self.to_json())
            except OSError as problem:
                refusals.append(f"{path}: {problem.strerror or problem}")
            else:
                return path
        raise StoreError(f"the calibration cannot be written: {'; '.join(refusals)}")


@dataclass(frozen=True)
class Found:
    """What `find_calibration` found: a calibration, or None, and in one line for people, why."""

    calibration: Calibration | None
    reason: str


def mean_of(milliseconds: Sequence[float]) -> float:
    """Their mean; one above `OUTLIER` times the median counts as that, as a request does while serving."""
    limit = OUTLIER * median(milliseconds)
    return fmean(min(one, limit) for one in milliseconds)


def calibration_paths(digest: str, package: str, node: Node) -> list[Path]:
    """Where the calibration of a package may lie on a node, the preferred place first.

    Nodes of different kinds may share a folder or a home, so the node is in the name.

    Args:
        digest: sha256 of the package. package: its path, or its address in a bucket.
    """
    kind = hashlib.sha256(json.dumps([node.cpu, node.cores]).encode()).hexdigest()[:8]
    name = f"{digest}.{kind}{_SUFFIX}"
    beside = [] if scheme_of(package) else [Path(package).absolute().parent / name]
    return [*beside, cache_folder() / "calibrations" / name]


def find_calibration(digest: str, place: str, *, threads: int = 1, node: Node | None = None) -> Found:
    """The latest calibration of a package on this node, if there is one that can be used.

    One that is broken, or of another package or node, is never used, and never an error: the
    profiles are there.

    Args:
        digest: sha256 of the package (`Portfolio.digest`).
        place: where the package was read from: a path, or an address in a bucket.
        threads: that the service's engines use.
        node: by default the one that this process runs on.
    """
    node = node or this_node()
    good: list[tuple[Calibration, Path]] = []
    bad: list[str] = []
    for path in calibration_paths(digest, place, node):
        if not os.path.lexists(path):
            continue
        try:
            calibration = Calibration.read(path)
            calibration.check(digest, node)
            good.append((calibration.for_threads(threads), path))
        except CalibrationError as problem:
            reason = str(problem)
            bad.append(reason if reason.startswith(f"{path}: ") else f"{path}: {reason}")
    if good:
        calibration, path = max(good, key=lambda one: one[0].measured)
        told = f"measured on this node on {calibration.measured:%Y-%m-%d %H:%M} UTC ({path})"
        if calibration.node.engine != node.engine:
            told += f", with {calibration.node.engine} and not {node.engine}: better calibrate again"
        return Found(calibration, told)
    if bad:
        return Found(None, f"the calibration is not used. {'; '.join(bad)}")
    return Found(None, f"not calibrated on this node: python -m jobs.calibrate {place}")


def _threads(variant: VariantTimes) -> tuple[int, ...]:
    return tuple(timed.threads for timed in variant.times)


def _ascending(what: str, numbers: Sequence[int]) -> None:
    if list(numbers) != sorted(set(numbers)):
        raise ValueError(f"the {what} must ascend: {list(numbers)}")


def _read(path: Path) -> bytes:
    # A pipe of that name must not keep a service waiting.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise CalibrationError("it is no file")
        with open(descriptor, "rb", closefd=False) as file:
            data = file.read(_LARGEST_FILE + 1)
    finally:
        os.close(descriptor)
    if len(data) > _LARGEST_FILE:
        raise CalibrationError(f"it is larger than {_LARGEST_FILE} bytes, as no calibration is")
    return data


def _write(path: Path, data: bytes) -> None:
    disk = Disk()
    draft = path.with_name(f".{path.name}.{os.getpid()}.part")
    disk.make_folder(path.parent)
    try:
        disk.write(draft, data)
        disk.rename(draft, path)
    finally:
        disk.unlink(draft)
    disk.sync(path.parent)
