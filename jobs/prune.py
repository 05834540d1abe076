"""The exact reduction of a network that exists already: the paper's one-time optimisation.

::

    python -m jobs.prune model.onnx --out smaller
    python -m jobs.prune weights.pt --model torchvision:resnet18 --input 3x224x224 --out smaller

Everything happens in this process, without Ray: it is one network, and takes seconds.
"""

from __future__ import annotations

import json
import re
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

from jobs import cli
from jobs.console import results_only_on_stdout
from shifter.errors import CheckpointError, RecipeError, StoreError
from shifter.values import CompressionRatio, Tensors

if TYPE_CHECKING:
    from shifter.onnx_prune import PrunedGraph
    from shifter.prune_report import PruneReport

NEEDED = ("onnx", "onnx_ir", "onnxruntime", "pyarrow", "safetensors", "torch")
KINDS = (".arrow", ".onnx", ".pt", ".pth", ".safetensors", ".th")

PROOF_IMAGES = 8
"""Random images on which the result is proved, where the graph does not fix their number."""


@dataclass(frozen=True)
class Request:
    """What to reduce, as the command line says it.

    Args:
        image: (channels, height, width); None where the graph says it.
    """

    checkpoint: Path
    architecture: Path | None
    model: str | None
    image: tuple[int, int, int] | None
    classes: int | None
    round_to: int
    ratio: float | None

    def __post_init__(self) -> None:
        kind = self.checkpoint.suffix
        if kind not in KINDS:
            raise CheckpointError(
                f"{self.checkpoint} is of no known kind: its name should end in {', '.join(KINDS)}"
            )
        if not self.checkpoint.is_file():
            raise CheckpointError(f"there is no file {self.checkpoint}")
        if kind == ".onnx" and (self.architecture or self.model):
            raise RecipeError("an .onnx file says its structure itself: leave out --architecture and --model")
        if kind != ".onnx" and (self.architecture is None) == (self.model is None):
            raise RecipeError(
                f"a {kind} file holds weights only: give either --architecture FILE.onnx (a run has it as "
                "architecture.onnx) or --model (vgg16, torchvision:resnet18, package.module:function)"
            )
        if self.model and self.image is None:
            raise RecipeError("--model needs to know the images: give --input, e.g. --input 3x32x32")
        if self.ratio is not None and not (np.isfinite(self.ratio) and self.ratio >= 1):
            raise RecipeError(f"--ratio {self.ratio}: a compression ratio is at least 1")


def reduce(request: Request) -> tuple[dict[str, Any], PruneReport, dict[str, bytes]]:
    """Reduces and proves: the report as plain data and as one that prints a table, and files by name.

    Raises:
        ShifterError: if anything given cannot be used, or the result would not be exact.
    """
    graph, report, files = _reduce_module(request) if request.model else _reduce_graph(request)
    told = {
        "checkpoint": str(request.checkpoint),
        "round_to": request.round_to,
        "exact": request.ratio is None,
        **report.to_json(),
        "onnx_parameters": sum(array.size for array in graph.tensors.values() if array.dtype.kind == "f"),
        "removed": list(graph.plan.removed),
        "error": {
            "float64": graph.exactness.float64,
            "float32": graph.exactness.float32,
            "sparse_float32": graph.exactness.sparse_float32,
            "images": graph.exactness.images,
        },
        "warning": graph.exactness.refusal,
    }
    from safetensors.numpy import save

    files = {
        "model.onnx": graph.model(),
        "tensors.safetensors": save(graph.tensors),
        "plan.json": _json(graph.plan.to_json()),
        **files,
        "report.json": _json(
            told | {"files": sorted({*files, "model.onnx", "tensors.safetensors", "plan.json"})}
        ),
    }
    return told, report, files


def _reduce_graph(request: Request) -> tuple[PrunedGraph, PruneReport, dict[str, bytes]]:
    from shifter.onnx_file import images_of, read_architecture, read_model, require_fit, tensor_names
    from shifter.onnx_prune import prune_graph
    from shifter.prune_report import PruneReport, layer_reports
    from shifter.pruning.profile import count_parameters, parameter_names

    if request.architecture is None:
        architecture, tensors = read_model(request.checkpoint)
    else:
        from jobs.checkpoints import read_arrays_for

        tensors = read_arrays_for(tensor_names(request.architecture), request.checkpoint)
        architecture = read_architecture(request.architecture, tensors.keys())
        require_fit(architecture, tensors, str(request.checkpoint))
    if request.ratio is not None:
        tensors = _masked(architecture, tensors, CompressionRatio(request.ratio))
    batch, *_ = sizes = images_of(architecture)
    images = _images(sizes, request.image)
    pruned = prune_graph(architecture, tensors, images, _run_float32, round_to=request.round_to, batch=batch)
    before, _ = count_parameters(tensors[name] for name in parameter_names(architecture))
    after, _ = count_parameters(pruned.tensors[name] for name in parameter_names(pruned.graph))
    report = PruneReport(
        layers=layer_reports(pruned.plan, tensors, pruned.tensors),
        parameters=(before, after),
        relative_error=pruned.exactness.float64,
        untouched=dict(pruned.plan.untouched),
        ratio=request.ratio,
    )
    return pruned, report, {}


def _reduce_module(request: Request) -> tuple[PrunedGraph, PruneReport, dict[str, bytes]]:
    from jobs.checkpoints import read_arrays, read_spec
    from shifter.models.existing import prune_existing

    assert request.model is not None
    assert request.image is not None
    result, files = prune_existing(
        read_spec(request.model),
        read_arrays(request.checkpoint),
        _images((None, *request.image), None),
        classes=request.classes,
        round_to=request.round_to,
        ratio=request.ratio,
        source=str(request.checkpoint),
    )
    return result.graph, result.report, files


def _masked(architecture: bytes, tensors: Tensors, ratio: CompressionRatio) -> dict[str, NDArray[Any]]:
    from shifter.onnx_file import weight_names
    from shifter.training.ranking import dense_mask, rank_by_magnitude

    names = [name for name in weight_names(architecture) if name in tensors]
    mask = rank_by_magnitude(tensors, dense_mask(tensors, names), ratio)
    return dict(tensors) | {
        name: np.where(mask[name], tensors[name], 0).astype(tensors[name].dtype) for name in names
    }


def _images(sizes: tuple[int | None, ...], image: tuple[int, int, int] | None) -> NDArray[np.float32]:
    """Random images of the sizes that the graph says, and ``--input`` where it does not."""
    batch, *stated = sizes if len(sizes) == 4 else (None, *sizes)
    if len(stated) != 3:
        raise RecipeError(
            f"the graph reads a tensor of shape {sizes}: it should be (batch, channels, height, width)"
        )
    known = tuple(size for size in stated if size is not None)
    if image is None and len(known) < 3:
        shown = "x".join("?" if size is None else str(size) for size in stated)
        raise RecipeError(f"the graph reads images of {shown}: give --input, e.g. --input 3x224x224")
    wanted = image or known
    if any(size not in (None, given) for size, given in zip(stated, wanted, strict=True)):
        raise RecipeError(
            f"--input {'x'.join(map(str, wanted))}: the graph reads {'x'.join(map(str, stated))}"
        )
    count = PROOF_IMAGES if batch is None else batch * max(1, PROOF_IMAGES // batch)
    return np.random.default_rng(0).normal(size=(count, *wanted)).astype(np.float32)


def _run_float32(graph: bytes, tensors: Tensors, images: NDArray[np.float32]) -> NDArray[np.float32]:
    from shifter.switching.engine import OnnxEngine

    return OnnxEngine(graph, tensors).run(images)


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder to write into that appears as ``out`` once all is written, and not at all otherwise.

    Raises:
        StoreError: if something is there already, or the folder cannot be made.
    """
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise StoreError(f"--out {out} is there already and not empty: give another folder, or remove it")
    parent = out.absolute().parent
    missing = [folder for folder in (parent, *parent.parents) if not folder.exists()]
    draft = parent / f".{out.name}-{uuid.uuid4().hex}.part"
    try:
        draft.mkdir(parents=True)
        yield draft
        draft.rename(out)
    except OSError as error:
        raise StoreError(f"--out {out} cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        for folder in missing:  # those that were made for it, the innermost first, and are empty
            with suppress(OSError):
                folder.rmdir()


def _json(data: Mapping[str, Any]) -> bytes:
    return json.dumps(data, indent=1).encode()


def _text(told: Mapping[str, Any], report: PruneReport, out: Path) -> str:
    lines = [str(report)]
    error = told["error"]
    lines.append(
        f"as ONNX: {told['onnx_parameters']:,} parameters; error {error['float64']:.1e} in float64, "
        f"{error['float32']:.1e} in float32"
    )
    if told["removed"]:
        lines.append(f"layers that are gone from the ONNX model: {', '.join(told['removed'])}")
    if told["warning"] and not report.warning:
        lines.append(f"warning: {told['warning']}")
    lines.append(f"written to {out}")
    if (out / "torch_plan.json").exists():
        lines.append(f"in torch: shifter.models.apply.load_pruned(network, {str(out)!r})")
    return "\n".join(lines)


def _image_size(text: str | None) -> tuple[int, int, int] | None:
    if text is None:
        return None
    found = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)x([1-9]\d*)", text)
    if found is None:
        raise RecipeError(f"--input {text!r} should read CHANNELSxHEIGHTxWIDTH, e.g. 3x32x32")
    return (int(found[1]), int(found[2]), int(found[3]))


@cli.reports_errors
def main(
    checkpoint: Annotated[
        Path,
        typer.Argument(
            metavar="CHECKPOINT",
            help="A network as .onnx, of any framework, or weights: .arrow, .safetensors, .pt, .pth, .th.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path, typer.Option(help="A folder for the result, which is not there yet.", metavar="DIR")
    ],
    architecture: Annotated[
        Path | None,
        typer.Option(help="The structure that the weights belong to.", metavar="F.onnx", show_default=False),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="The network instead: vgg16, torchvision:resnet18, package.module:function (called with "
            "classes= and channels=), or a mapping as in a recipe.",
            metavar="SPEC",
            show_default=False,
        ),
    ] = None,
    image: Annotated[
        str | None,
        typer.Option("--input", help="The images it reads, as 3x32x32.", metavar="CxHxW", show_default=False),
    ] = None,
    classes: Annotated[
        int | None,
        typer.Option(
            help="With --model: its outputs; by default as the weights have it.", min=1, show_default=False
        ),
    ] = None,
    round_to: Annotated[int, typer.Option(help="Widths go up to a multiple of this.", min=1)] = 8,
    ratio: Annotated[
        float | None,
        typer.Option(
            help="First keep one in R weights, the largest of the whole network. The result is then exact "
            "with regard to those, and NOT to the network given.",
            metavar="R",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as one JSON document.")] = False,
    version: cli.Version = False,
) -> None:
    """Reduce one existing network exactly: a smaller one that gives the same answers.

    Writes model.onnx (with its weights), tensors.safetensors, plan.json and report.json;
    with --model also model.safetensors and torch_plan.json, for torch.
    If anything fails, nothing is written.
    """
    cli.require("prune", "train", *NEEDED)
    with results_only_on_stdout() as show:
        request = Request(checkpoint, architecture, model, _image_size(image), classes, round_to, ratio)
        with new_folder(out) as draft:
            told, report, files = reduce(request)
            for name, data in files.items():
                (draft / name).write_bytes(data)
        show(json.dumps(told, indent=2) if as_json else _text(told, report, out))


if __name__ == "__main__":
    cli.run(main)
