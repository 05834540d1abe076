"""What a package weighs, beside the entropy of what is in it, and how fast it inflates.

::

    python -m benchmarks.switching_bytes bytes ~/.cache/portfolios
    python -m benchmarks.switching_bytes inflate ~/.cache/portfolios
"""

from __future__ import annotations

import math
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

from benchmarks.comparison import Figure, Row, compared, in_rotation, save
from shifter.portfolio import Portfolio, pack
from shifter.values import Tensors, Variant

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True)
Cache = Annotated[Path, typer.Argument(help="Folder in which the portfolios are kept.")]
Out = Annotated[Path, typer.Option(help="Rows are added to this file, as JSON lines.")]
RESULTS = Path("benchmarks/results/switching.jsonl")


def entropy_bound(tensors: Tensors) -> dict[str, float]:
    """Bytes below which no coding gets that knows each tensor's frequencies, for nothing, and no order.

    Mask: n H(p) bits a tensor, p being the share of elements that are not zero. Values: of floats, the
    order-0 entropy of (sign, exponent) over a tensor's non-zero elements, and the mantissa's bits as
    they are; of whole numbers, the order-0 entropy of the elements. Nothing is counted for names,
    shapes, frequencies, graphs, profiles and the container, which the package needs besides.
    """
    mask = values = 0.0
    for tensor in tensors.values():
        if tensor.dtype.kind != "f":
            values += _entropy(np.unique(tensor, return_counts=True)[1])
            continue
        bits = np.ascontiguousarray(tensor).reshape(-1).view(f"u{tensor.itemsize}")
        kept = bits[bits != 0]
        mask += _entropy(np.array([kept.size, bits.size - kept.size]))
        mantissa = np.finfo(tensor.dtype).nmant
        values += _entropy(np.unique(kept >> kept.dtype.type(mantissa), return_counts=True)[1])
        values += mantissa * kept.size
    return {"mask": mask / 8, "values": values / 8}


def _entropy(counts: NDArray[Any]) -> float:
    """Bits of so many symbols, each at its share's price."""
    counts = counts[counts > 0].astype(np.float64)
    return float(-(counts * np.log2(counts / counts.sum())).sum()) if counts.size else 0.0


def bytes_row(name: str, package: bytes) -> tuple[Row, Row]:
    """A portfolio's package against the entropy bound, and against zlib level 6 of the raw tensors.

    It is packed anew from its own content, so that the rows are those of the code at hand.
    """
    portfolio = Portfolio.open(package)
    variants = {variant: portfolio.inflate(variant) for variant in portfolio.names}
    manifest = portfolio.manifest
    began = time.perf_counter()
    packed = pack(
        list(variants.values()), manifest.input, model=manifest.model, provenance=manifest.provenance
    )
    seconds = time.perf_counter() - began
    bounds = {variant: entropy_bound(made.tensors) for variant, made in variants.items()}
    zlib6 = {variant: len(_zlib(made)) for variant, made in variants.items()}
    by_variant: dict[str, Any] = {}
    for record in Portfolio.open(packed).manifest.variants:
        codings: Counter[str] = Counter()
        for tensor in record.tensors:
            codings[tensor.coding] += tensor.deflated
        by_variant[record.name] = {
            "raw": record.tensor_bytes,
            "deflated": record.deflated_bytes,
            "over the bound": record.deflated_bytes / sum(bounds[record.name].values()),
            "over zlib": record.deflated_bytes / zlib6[record.name],
            "codings": dict(codings),
        }
    parts = {part: float(sum(bound[part] for bound in bounds.values())) for part in ("mask", "values")}
    sizes = {
        "package": float(len(packed)),
        "bound": sum(parts.values()),
        "zlib 6": float(sum(zlib6.values())),
    }
    figures = {what: Figure.of([size]) for what, size in {**sizes, **parts}.items()}
    notes = {"variants": by_variant, "seconds to pack": seconds}

    def row(other: str, target: str) -> Row:
        ratio = Figure.of([sizes["package"] / sizes[other]])
        return Row(f"bytes, {name} package / {other}", ratio, target, figures, notes)

    return row("bound", "<= 1.10"), row("zlib 6", "<= 0.75")


def _zlib(variant: Variant) -> bytes:
    """The published approach's file: the raw tensors, one after another."""
    packer = zlib.compressobj(6)
    parts = [packer.compress(np.ascontiguousarray(tensor).data) for tensor in variant.tensors.values()]
    return b"".join([*parts, packer.flush()])


def inflate_row(name: str, package: bytes, repetitions: int = 15) -> Row:
    """Inflating every variant once, against zlib's inflating of the same tensors, in turns.

    The first time a package inflates a variant, it checks digests as well: a figure of its own.
    """
    portfolio = Portfolio.open(package)
    streams = {variant: _zlib(portfolio.inflate(variant)) for variant in portfolio.names}
    fresh = iter([Portfolio.open(package) for _ in range(repetitions)])
    taken: dict[str, dict[str, list[float]]] = {variant: {} for variant in portfolio.names}

    def timed(what: str, work: Mapping[str, Callable[[], object]]) -> float:
        for variant, inflate in work.items():
            began = time.perf_counter()
            inflate()
            taken[variant].setdefault(what, []).append(1000 * (time.perf_counter() - began))
        return sum(each[what][-1] for each in taken.values())

    def of(opened: Portfolio) -> dict[str, Callable[[], object]]:
        return {variant: partial(opened.inflate, variant) for variant in opened.names}

    found = in_rotation(
        {
            "ours": lambda: timed("ours", of(portfolio)),
            "ours, first": lambda: timed("ours, first", of(next(fresh))),
            "zlib": lambda: timed(
                "zlib", {each: partial(zlib.decompress, stream) for each, stream in streams.items()}
            ),
        },
        repetitions,
    )
    notes = {
        "variants, ms": {
            variant: {what: str(Figure.of(values)) for what, values in each.items()}
            for variant, each in taken.items()
        },
        "geometric mean of the variants' ratios": math.exp(
            np.mean([np.log(np.median(each["ours"]) / np.median(each["zlib"])) for each in taken.values()])
        ),
        "ours, first": str(Figure.of(found["ours, first"])),
        "raw bytes": sum(variant.tensor_bytes for variant in portfolio.manifest.variants),
    }
    return compared(
        f"ms, inflating all of {name}, ours / zlib",
        "",
        ("ours", "zlib"),
        (found["ours"], found["zlib"]),
        **notes,
    )


def _finish(row: Row, out: Path) -> None:
    print(row, flush=True)
    for variant, told in row.notes.get("variants", row.notes.get("variants, ms", {})).items():
        print(f"  {variant}: {told}", flush=True)
    save(row, out, " ".join(["python", "-m", "benchmarks.switching_bytes", *sys.argv[1:]]))


@app.command("bytes")
def bytes_command(cache: Cache, out: Out = RESULTS) -> None:
    """Bytes of both packages."""
    from benchmarks.portfolios import PORTFOLIOS

    for name, portfolio in PORTFOLIOS.items():
        for row in bytes_row(name, portfolio(cache)):
            _finish(row, out)


@app.command("inflate")
def inflate_command(
    cache: Cache,
    repetitions: Annotated[int, typer.Option(help="Measurements of each way, in turns.")] = 15,
    out: Out = RESULTS,
) -> None:
    """Milliseconds to inflate every variant of both packages."""
    from benchmarks.portfolios import PORTFOLIOS

    for name, portfolio in PORTFOLIOS.items():
        _finish(inflate_row(name, portfolio(cache), repetitions), out)


if __name__ == "__main__":
    app()
