"""Networks to reduce: random weights with batch norm calibrated, and filters that are zero.

Shifts of batch norm are random too, so that a filter of zeros is a constant and not zero: tools that
drop constants answer wrongly.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from shifter.models.export import export_architecture
from shifter.pruning.exactness import relative_error
from shifter.values import InputSpec

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Subject:
    """A sparse network in both forms: a module, and a graph with named tensors."""

    name: str
    module: nn.Module
    architecture: bytes
    size: int

    @property
    def tensors(self) -> Arrays:
        """What inference reads, as the module holds it."""
        return {
            name: value.numpy()
            for name, value in self.module.state_dict().items()
            if not name.endswith("num_batches_tracked")
        }

    def images(self, count: int, size: int | None = None) -> NDArray[np.float32]:
        """(count, 3, size, size), of the exported size unless given."""
        return photographs(np.random.default_rng(7), count, size or self.size).numpy()

    def answers(self, images: NDArray[np.float32]) -> NDArray[np.float64]:
        """The module's own in float64."""
        return answers_of(self.module, images)

    def error_of(self, module: nn.Module, images: NDArray[np.float32]) -> float:
        """How far another module's answers are from them, in float32: not all tools' modules take more."""
        return relative_error(_one_by_one(module, torch.from_numpy(images)), self.answers(images))


def answers_of(module: nn.Module, images: NDArray[np.float32]) -> NDArray[np.float64]:
    """In float64; the module is left as it was."""
    dtype = next(module.parameters()).dtype
    found = _one_by_one(module.double(), torch.from_numpy(images).double())
    module.to(dtype)
    return found


def _one_by_one(module: nn.Module, images: torch.Tensor) -> NDArray[Any]:
    module.eval()
    with torch.no_grad():
        return np.concatenate([module(image[None]).numpy() for image in images])


def enliven(module: nn.Module) -> None:
    """Random weights of a trained network's size."""
    for part in module.modules():
        if isinstance(eps := getattr(part, "eps", None), float):
            part.eps = float(np.float32(eps))  # type: ignore[assignment]  # as ONNX stores it
        for name, parameter in part.named_parameters(recurse=False):
            if isinstance(part, nn.BatchNorm2d | nn.LayerNorm):
                nn.init.normal_(parameter, 1.0 if name == "weight" else 0.0, 0.3)
            elif name == "layer_scale":
                nn.init.uniform_(parameter, 0.3, 1.0)
            elif name.endswith("weight"):
                nn.init.normal_(parameter, 0.0, (2 / parameter[0].numel()) ** 0.5)
            elif name != "logit_scale":
                nn.init.normal_(parameter, 0.0, 0.15)


def calibrate(module: nn.Module, size: int) -> None:
    """Batch norm's statistics are those of images; then its scale and shift are perturbed."""
    norms = [part for part in module.modules() if isinstance(part, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None
    module.train()
    if norms:
        module(photographs(np.random.default_rng(1), 8, size))
    for norm in norms:
        nn.init.normal_(norm.weight, 1.0, 0.3)
        nn.init.normal_(norm.bias, 0.1, 0.3)
    module.eval()


def photographs(rng: np.random.Generator, count: int, size: int) -> torch.Tensor:
    """Smooth images of different brightness, with a little noise: float32 (count, 3, size, size)."""
    coarse = torch.from_numpy(rng.normal(size=(count, 3, 4, 4)) + rng.normal(size=(count, 1, 1, 1)))
    smooth = functional.interpolate(coarse, size=(size, size), mode="bicubic", align_corners=False)
    return (smooth + 0.1 * torch.from_numpy(rng.normal(size=smooth.shape))).float()


def subject(name: str, module: nn.Module, size: int, zero: Callable[[nn.Module], None]) -> Subject:
    """``module`` with random weights, made sparse by ``zero``, calibrated, and exported."""
    with torch.no_grad():
        enliven(module)
        zero(module)
        calibrate(module, size)
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    spec = InputSpec(3, size, size, 255.0, (0.0,) * 3, (1.0,) * 3, ("class",))
    return Subject(name, module, export_architecture(module, spec), size)


def resnet50(size: int = 224) -> tuple[Subject, dict[str, list[int]]]:
    """torchvision's, half of the filters of every conv1 and conv2 of its blocks zero; and which ones."""
    from torchvision.models import resnet50 as build

    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    dead: dict[str, list[int]] = {}

    def zero(module: nn.Module) -> None:
        for name, part in module.named_modules():
            if isinstance(part, nn.Conv2d) and name.startswith("layer") and name[-5:] in ("conv1", "conv2"):
                filters = np.sort(rng.permutation(part.out_channels)[: part.out_channels // 2]).tolist()
                part.weight[filters] = 0
                dead[name] = filters

    return subject("resnet50", build(weights=None), size, zero), dead


def vgg16(share: float, ratio: float, seed: int = 0) -> Subject:
    """OpenLTH's VGG-16 for CIFAR-10, as a late round leaves it.

    Args:
        share: of the filters of the layers of 512 that stay.
        ratio: of all weights one in ``ratio`` is not zero, but each filter that stays keeps some.
    """
    from shifter.models.vgg import Vgg

    torch.manual_seed(seed)
    widths = [(64, 64), (128, 128), (256,) * 3, (512,) * 3, (512,) * 3]
    module = Vgg(widths, channels=3, classes=10)

    def zero(module: nn.Module) -> None:
        convolutions = [part for part in module.modules() if isinstance(part, nn.Conv2d)]
        for part in convolutions:
            if part.out_channels == 512:
                part.weight[torch.randperm(512)[round(share * 512) :]] = 0
        left = [part.weight for part in convolutions]
        wanted = sum(weight.numel() for weight in left) / ratio
        density = min(1.0, wanted / sum(int(weight.count_nonzero()) for weight in left))
        for weight in left:
            weight *= torch.rand(weight.shape) < density

    return subject("vgg16", module, 32, zero)
