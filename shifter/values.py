"""The small value types in which the phases meet.

Frozen and validated when made, so that whoever receives one need not check again. numpy only:
every phase, the edge included, imports this module.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

_MOST = 2**63
_SOME = ("dense_parameters", "memory_bytes", "batch_images")
_COUNTS = ("round", "nonzero_parameters", "structural_parameters", "tensor_bytes", *_SOME)

Tensors = Mapping[str, NDArray[Any]]
"""Named arrays: a network's parameters and buffers under their ``state_dict`` names."""


@dataclass(frozen=True, order=True)
class Step:
    """A moment of training, in optimiser iterations from its start.

    Raises:
        ValueError: if ``iteration`` is negative, or the text is not ``<n>it`` or ``<n>ep``.
    """

    iteration: int

    def __post_init__(self) -> None:
        if self.iteration < 0:
            raise ValueError(f"a step cannot be negative: {self.iteration}")

    @classmethod
    def parse(cls, text: str, iterations_per_epoch: int) -> Step:
        """Reads ``2000it`` (iterations) or ``5ep`` (epochs)."""
        found = re.fullmatch(r"(\d+)(it|ep)", text.strip())
        if found is None:
            raise ValueError(f"{text!r} is not a step: write iterations as '2000it', epochs as '5ep'")
        count = int(found[1])
        return cls(count if found[2] == "it" else count * iterations_per_epoch)


@dataclass(frozen=True, order=True)
class CompressionRatio:
    """C of the paper: of every C prunable weights, C - 1 are zero.

    Raises:
        ValueError: if the ratio is below 1 or not finite.
    """

    value: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.value) and self.value >= 1):
            raise ValueError(f"a compression ratio is at least 1: {self.value}")

    def kept(self, total: int) -> int:
        """How many of ``total`` weights stay non-zero; at least one."""
        return max(1, round(total / self.value))

    def __str__(self) -> str:
        return f"{self.value:.10g}x"


class Mask(Mapping[str, NDArray[np.bool_]]):
    """Which weights stay, per prunable tensor: True is kept, False is zero for good.

    Arrays are copied and made read-only.
    """

    def __init__(self, arrays: Mapping[str, NDArray[np.bool_]]) -> None:
        self._arrays: dict[str, NDArray[np.bool_]] = {}
        for name in sorted(arrays):
            array = np.array(arrays[name], copy=True)
            if array.dtype != np.bool_:
                raise ValueError(f"the mask of {name!r} is {array.dtype}, not bool")
            array.setflags(write=False)
            self._arrays[name] = array

    def __getitem__(self, name: str) -> NDArray[np.bool_]:
        return self._arrays[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    @property
    def total(self) -> int:
        """Weights that the mask speaks of."""
        return sum(a.size for a in self._arrays.values())

    @property
    def kept(self) -> int:
        """Weights that it keeps."""
        return sum(int(np.count_nonzero(a)) for a in self._arrays.values())

    def is_within(self, other: Mask) -> bool:
        """True if every weight kept here is kept there: masks only ever shrink."""
        return self.keys() == other.keys() and all(not np.any(self[name] & ~other[name]) for name in self)

    def digest(self) -> str:
        """sha256 over names, shapes and bits."""
        whole = hashlib.sha256()
        for name, array in self._arrays.items():
            whole.update(f"{name}{array.shape}".encode())
            whole.update(np.packbits(array).tobytes())
        return whole.hexdigest()


@dataclass(frozen=True)
class InputSpec:
    """What a network reads, so that the edge needs nothing else.

    The network's input is float32 of shape (batch, channels, height, width), made from pixels as
    ``(pixel / pixel_max - mean) / std`` per channel.

    Args:
        pixel_max: the value of a white pixel as stored by the data set (255 for ordinary images,
            16 for scikit-learn's digits).
        classes: one name per output of the network.
    """

    channels: int
    height: int
    width: int
    pixel_max: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        if min(self.channels, self.height, self.width) < 1:
            raise ValueError(f"an image of {self.channels}x{self.height}x{self.width} holds nothing")
        if len(self.mean) != self.channels or len(self.std) != self.channels:
            raise ValueError(
                f"{self.channels} channels need as many means and deviations, "
                f"not {len(self.mean)} and {len(self.std)}"
            )
        if not self.pixel_max > 0 or not all(s > 0 for s in self.std):
            raise ValueError("pixel_max and every standard deviation must be above zero")
        if not self.classes:
            raise ValueError("a classifier needs at least one class")

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        return (self.channels, self.height, self.width)

    def normalise(self, pixels: NDArray[Any]) -> NDArray[np.float32]:
        """Pixels of shape (batch, channels, height, width), any real dtype, to the network's input."""
        mean = np.asarray(self.mean, np.float32).reshape(1, -1, 1, 1)
        std = np.asarray(self.std, np.float32).reshape(1, -1, 1, 1)
        scaled = pixels.astype(np.float32) / np.float32(self.pixel_max)
        return np.ascontiguousarray((scaled - mean) / std, dtype=np.float32)

    def to_json(self) -> dict[str, Any]:
        """As plain data, whose sequences become lists in JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> InputSpec:
        """Raises KeyError, TypeError or ValueError for what is not of :meth:`to_json`."""
        fields = dict(data)
        for name in ("mean", "std", "classes"):
            fields[name] = tuple(fields[name])
        return cls(**fields)


@dataclass(frozen=True)
class Latency:
    """Times of one call, in milliseconds, with 95 % intervals of the median and of the 99th percentile.

    A bound of p99 is None where so few samples know none: nothing above holds before 368.
    """

    p50_ms: float
    p50_low_ms: float
    p50_high_ms: float
    p99_ms: float
    samples: int
    p99_low_ms: float | None = None
    p99_high_ms: float | None = None

    def __post_init__(self) -> None:
        medians = (self.p50_low_ms, self.p50_ms, self.p50_high_ms)
        tails = (self.p99_low_ms, self.p99_ms, self.p99_high_ms)
        finite = all(0 < ms < math.inf for ms in (*medians, *tails) if ms is not None)
        if self.samples < 1 or not finite or self.p50_ms > self.p99_ms:
            raise ValueError(f"not a latency: {self}")

    def is_slower_than(self, other: Latency) -> bool:
        """Whether the medians' intervals lie apart; where they overlap, neither is slower."""
        return self.p50_low_ms > other.p50_high_ms


@dataclass(frozen=True)
class Exactness:
    """How far a variant is from its sparse checkpoint (relative to the variation over images).

    ``float64``: pruned against sparse, both in float64. ``float32``: pruned in float32 against
    sparse in float64. ``sparse_float32``: the sparse network's own float32 error, the yardstick.
    """

    FLOAT64_BOUND: ClassVar = 1e-10
    FLOAT32_BOUND: ClassVar = 1e-4
    FLOAT32_FACTOR: ClassVar = 4.0
    # A collapsed network has few answers and may hit them by luck: no yardstick is finer than this.
    _RESOLUTION: ClassVar = float(np.finfo(np.float32).eps)

    float64: float
    float32: float
    sparse_float32: float
    images: int

    @property
    def float32_bound(self) -> float:
        """What ``float32`` may be: a few times the yardstick, and never above ``FLOAT32_BOUND``."""
        return min(self.FLOAT32_FACTOR * max(self.sparse_float32, self._RESOLUTION), self.FLOAT32_BOUND)

    @property
    def is_measurable(self) -> bool:
        """Whether float32 can carry the sparse network: one whose answers hardly depend on the image
        drowns in its own rounding, and says nothing about the reduction.
        """
        return self.sparse_float32 <= self.FLOAT32_BOUND

    @property
    def refusal(self) -> str | None:
        """Why a variant with these errors is not published, in one line; None if it may be."""
        if not self.is_measurable:
            return (
                f"its answers hardly depend on the image: float32 by itself is {self.sparse_float32:.1e} "
                f"away from the sparse network, more than {self.FLOAT32_BOUND:.0e}"
            )
        for bits, error, bound in (
            (64, self.float64, self.FLOAT64_BOUND),
            (32, self.float32, self.float32_bound),
        ):
            if not error <= bound:
                return (
                    f"it differs from its sparse network by {error:.1e} in float{bits}, more than {bound:.1e}"
                )
        return None


@dataclass(frozen=True)
class LayerCost:
    """What one layer costs for one image.

    Args:
        macs: multiplications with addition; None where the shapes do not tell.
        weight_bytes: of its weight and bias. output_bytes: of what it hands on; None likewise.
    """

    name: str
    op: str
    macs: int | None
    weight_bytes: int
    output_bytes: int | None

    def __post_init__(self) -> None:
        for name in ("macs", "weight_bytes", "output_bytes"):
            count = getattr(self, name)
            if count is not None and not 0 <= count < _MOST:
                raise ValueError(f"{name} of {self.name!r} cannot be {count}: it counts something")


@dataclass(frozen=True)
class Profile:
    """What was measured of one variant (module 5).

    What has a default is absent from profiles of the first version.

    Args:
        ratio: compression ratio C of the checkpoint it was reduced from.
        dense_parameters: parameters of the dense network it descends from.
        nonzero_parameters: what C counts. structural_parameters: what is left to store and multiply.
        tensor_bytes: raw bytes of its tensors. memory_bytes: resident bytes that one loaded
            engine adds to a process.
        latency: one image, one core, again and again (*hot*). batch_latency: ``batch_images`` images
            in one call. dense_latency: as ``latency``, of the fused dense network in the same run.
        alternating_latency: one image, when every call is another variant's turn, so that nothing
            of this one is left in the caches; None where there is no other.
        cores: that ``all_cores_latency`` (one image) could use.
        layers: what each layer costs, in the order of the graph.

    Raises:
        ValueError: for a number that nobody can have measured: services budget and choose by them.
    """

    round: int
    ratio: float
    dense_parameters: int
    nonzero_parameters: int
    structural_parameters: int
    tensor_bytes: int
    memory_bytes: int
    validation_accuracy: float
    test_accuracy: float
    latency: Latency
    batch_images: int
    batch_latency: Latency
    dense_latency: Latency
    exactness: Exactness
    alternating_latency: Latency | None = None
    cores: int | None = None
    all_cores_latency: Latency | None = None
    layers: tuple[LayerCost, ...] = ()

    def __post_init__(self) -> None:
        wrong = [
            *(name for name in _COUNTS if not 0 <= getattr(self, name) < _MOST),
            *(name for name in _SOME if getattr(self, name) == 0),
            *(name for name in ("validation_accuracy", "test_accuracy") if not 0 <= getattr(self, name) <= 1),
            *(["ratio"] if not 1 <= self.ratio < math.inf else []),
            *(["cores"] if self.cores is not None and not 1 <= self.cores < _MOST else []),
        ]
        if wrong:
            raise ValueError(f"{wrong[0]} of a profile cannot be {getattr(self, wrong[0])}")

    @property
    def macs(self) -> int | None:
        """Multiply-accumulates of one image; None where they are not known."""
        known = [layer.macs for layer in self.layers if layer.macs is not None]
        return sum(known) if known and len(known) == len(self.layers) else None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Profile:
        """Raises KeyError, TypeError or ValueError for what is not of :meth:`to_json`."""
        fields = dict(data)
        for name in ("latency", "batch_latency", "dense_latency", "alternating_latency", "all_cores_latency"):
            if fields.get(name) is not None:
                fields[name] = Latency(**fields[name])
        fields["layers"] = tuple(LayerCost(**layer) for layer in fields.get("layers", ()))
        fields["exactness"] = Exactness(**fields["exactness"])
        return cls(**fields)


@dataclass(frozen=True)
class Variant:
    """One reduced network, ready to be packed or run.

    Args:
        name: unique in its portfolio, e.g. ``64x``.
        graph: an ONNX model without weights: every initializer is external, its ``location`` being
            its own name.
        tensors: what belongs under those names (C-contiguous arrays of the graph's dtype).
    """

    name: str
    graph: bytes
    tensors: Tensors
    profile: Profile

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", self.name):
            raise ValueError(f"{self.name!r} cannot name a variant: letters, digits, '.', '_' and '-' only")


@dataclass(frozen=True)
class Discarded:
    """A variant that the selection (module 6) left out, and the one that beats it, if one does.

    ``reason`` is one line for people, e.g. ``8x is no larger, no slower and more accurate``.
    """

    name: str
    beaten_by: str | None
    reason: str


@dataclass(frozen=True)
class Search:
    """What was searched for a portfolio, and what of it is worth having (the paper's Table III).

    Args:
        searched: variants that were trained. optimal: names of those that none beats in size, latency
            and accuracy at once; near-twins count.
        min_parameters, mean_parameters, max_parameters: non-zero ones, over the variants.
        trained_parameters: the dense network's, as often as it was trained.
        mean_accuracy, accuracy_deviation: of the optimal variants, on the test images; the deviation
            is that of a sample.
    """

    searched: int
    optimal: tuple[str, ...]
    min_parameters: int
    mean_parameters: float
    max_parameters: int
    trained_parameters: int
    mean_accuracy: float
    accuracy_deviation: float

    @property
    def efficiency(self) -> float:
        """Optimal variants over searched ones, 0 to 1."""
        return len(self.optimal) / self.searched
