"""The part of a recipe that says which network is trained, and from which weights."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Literal, get_args

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, JsonValue, Tag

from shifter.configuration import Count, Part

__all__ = ["FunctionModel", "Model", "ResNetModel", "TorchvisionModel", "VggModel", "WeightsFile"]

Drawn = Literal["he", "openlth", "own"]
"""First weights that are drawn from the recipe's seed; see :func:`shifter.models.initialise`."""

FILE_TYPES: Final = (".arrow", ".safetensors", ".pt", ".pth", ".th")

Widths = Annotated[tuple[Count, ...], Field(min_length=1)]


class WeightsFile(Part):
    """A file of weights. A recipe gives its path alone; the content's hash is taken on reading it.

    ``path``: absolute. ``sha256``: of the content, in hex; it, and not the path, is part of what the
    recipe means, and the content is held against it wherever the weights are loaded.
    """

    path: str
    sha256: str


def _weights(value: Any) -> Any:
    """A path becomes a :class:`WeightsFile`; relative ones start at the working directory."""
    if isinstance(value, WeightsFile) or value in get_args(Drawn):
        return value
    if isinstance(value, Mapping):
        path, digest = value.get("path"), value.get("sha256")
        whole = value.keys() == {"path", "sha256"} and isinstance(path, str) and isinstance(digest, str)
        if whole and re.fullmatch(r"[0-9a-f]{64}", str(digest)):
            return WeightsFile(path=str(path), sha256=str(digest))
    if not isinstance(value, str) or not value.lower().endswith(FILE_TYPES):
        raise ValueError(
            f"{value!r} should be {', '.join(get_args(Drawn))}, or a file whose name ends in "
            f"{', '.join(FILE_TYPES)}"
        )
    path = Path(value).expanduser().absolute()
    try:
        with path.open("rb") as file:
            return WeightsFile(path=str(path), sha256=hashlib.file_digest(file, "sha256").hexdigest())
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None


Weights = Annotated[WeightsFile | Drawn, BeforeValidator(_weights)]


class _Network(Part):
    """What every network's description has.

    ``weights``: where training starts. Drawn from the seed: ``he``, ``openlth``, or ``own``, the way
    the network itself draws them. Or a file, whose every tensor has to fit: a ``state_dict``
    (``.pt``, ``.pth``, ``.th``, ``.safetensors``) or one of our sparse checkpoints (``.arrow``).
    """

    known_names: ClassVar[tuple[str, ...]]

    def smallest_image(self) -> int:
        """Height and width below which the network has nothing left to look at."""
        return 1


class VggModel(_Network):
    """VGG for small images: 3x3 convolutions with batch norm and ReLU, one linear layer.

    ``stages``: widths of the convolutions of each stage; a 2x2 max pooling stands between stages.
    """

    known_names: ClassVar = ("vgg", "vgg11", "vgg13", "vgg16", "vgg19")

    name: Literal["vgg"]
    stages: Annotated[tuple[Widths, ...], Field(min_length=1)]
    weights: Weights = "he"

    def smallest_image(self) -> int:
        """Every pooling halves the image, which must keep a pixel."""
        return int(2 ** (len(self.stages) - 1))


class ResNetModel(_Network):
    """CIFAR ResNet: a 3x3 stem, then per width a stage of ``blocks`` basic blocks.

    Stages after the first begin with stride 2; a shortcut is a projection (1x1 convolution and batch
    norm) where the shape changes, the identity elsewhere.
    """

    known_names: ClassVar = ("resnet", "resnet20", "resnet32", "resnet44", "resnet56")

    name: Literal["resnet"]
    widths: Widths
    blocks: Count
    weights: Weights = "he"


def _reads_as(pattern: str, example: str) -> Callable[[str], str]:
    def check(name: str) -> str:
        if not re.fullmatch(pattern, name):
            raise ValueError(f"{name!r} should read like {example}")
        return name

    return check


_FUNCTION = r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*"


class TorchvisionModel(_Network):
    """A classifier of torchvision, e.g. ``torchvision:resnet18``, with one output a class.

    ``arguments``: more keyword arguments of its builder, e.g. ``dropout: 0.1``.
    """

    known_names: ClassVar = ("torchvision:NAME",)

    name: Annotated[str, AfterValidator(_reads_as(r"torchvision:\w+", "torchvision:resnet18"))]
    arguments: Annotated[dict[str, JsonValue], Field(default_factory=dict)]
    weights: Weights = "own"


class FunctionModel(_Network):
    """The user's own network: ``package.module:function`` returns the ``torch.nn.Module``.

    The function is called with ``classes=`` and ``channels=`` (both int) and ``arguments``. The
    recipe knows its code by name only: after changing the code, give the run another name.
    """

    known_names: ClassVar = ("package.module:function",)

    name: Annotated[str, AfterValidator(_reads_as(_FUNCTION, "my_package.networks:small"))]
    arguments: Annotated[dict[str, JsonValue], Field(default_factory=dict)]
    weights: Weights = "own"


def _vgg(*stages: tuple[int, ...]) -> dict[str, Any]:
    return {"name": "vgg", "stages": stages, "weights": "openlth"}


def _resnet(blocks: int) -> dict[str, Any]:
    return {"name": "resnet", "widths": (16, 32, 64), "blocks": blocks, "weights": "openlth"}


PRESETS: Final[Mapping[str, Mapping[str, Any]]] = {
    "vgg11": _vgg((64,), (128,), (256,) * 2, (512,) * 2, (512,) * 2),
    "vgg13": _vgg((64,) * 2, (128,) * 2, (256,) * 2, (512,) * 2, (512,) * 2),
    "vgg16": _vgg((64,) * 2, (128,) * 2, (256,) * 3, (512,) * 3, (512,) * 3),
    "vgg19": _vgg((64,) * 2, (128,) * 2, (256,) * 4, (512,) * 4, (512,) * 4),
    "resnet20": _resnet(3),
    "resnet32": _resnet(5),
    "resnet44": _resnet(7),
    "resnet56": _resnet(9),
}
"""OpenLTH's networks for CIFAR, by its ``cifar_vgg_N`` and ``cifar_resnet_N``, and its first weights.

One thing is left out: the biases of VGG's convolutions, which batch norm subtracts again.
"""


def _expand(value: Any) -> Any:
    """A preset's name becomes what it stands for, so that both spellings are the same recipe."""
    if isinstance(value, _Network):
        return value
    if not isinstance(value, Mapping):
        raise ValueError(f"{value!r} should be a mapping, e.g. {{name: resnet20}}")
    name = value.get("name")
    if not isinstance(name, str) or name not in PRESETS:
        return value
    preset = PRESETS[name]
    fixed = [key for key in value if key in preset and key not in ("name", "weights")]
    if fixed:
        raise ValueError(
            f"{name} has its own {', '.join(fixed)}: to choose them, write name: {preset['name']}"
        )
    return {**preset, **{key: given for key, given in value.items() if key != "name"}}


def _kind(value: Any) -> str | None:
    """Which description ``name`` asks for."""
    name = value.get("name") if isinstance(value, Mapping) else value.name
    if isinstance(name, str) and ":" in name:
        return "torchvision:NAME" if name.startswith("torchvision:") else "package.module:function"
    return None if name is None else str(name)


Model = Annotated[
    Annotated[VggModel, Tag("vgg")]
    | Annotated[ResNetModel, Tag("resnet")]
    | Annotated[TorchvisionModel, Tag("torchvision:NAME")]
    | Annotated[FunctionModel, Tag("package.module:function")],
    Discriminator(_kind),
    BeforeValidator(_expand),
]
"""Any network's description; ``name`` says which."""
