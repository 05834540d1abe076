"""The variants of a benchmark's portfolio as torch modules: what others would switch, and run.

As a program, it is the process in which `benchmarks.switching` measures them, apart from ours, so that
neither sees what the other does to its memory: a line asks for a way and a variant, and milliseconds are
the answer.
"""

from __future__ import annotations

import io
import sys
import time
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from shifter.portfolio import Portfolio
from shifter.pruning.exactness import relative_error
from shifter.switching.engine import OnnxEngine
from shifter.values import Tensors, Variant

SAME = 1e-3
"""How far a module's answers may be from its variant's; rounding to float32 takes them 2e-4 apart."""


def pruned_module(model: str, tensors: Tensors) -> nn.Module:
    """The network's own class, each convolution as narrow as the variant's, batch norms fused into them."""
    module = _dense(model, classes=len(_last_bias(tensors)))
    for name, part in list(module.named_modules()):
        if isinstance(part, nn.BatchNorm2d):
            module.set_submodule(name, nn.Identity())
        elif isinstance(part, nn.Conv2d | nn.Linear):
            weight, bias = (torch.from_numpy(tensors[f"{name}.{kind}"].copy()) for kind in ("weight", "bias"))
            module.set_submodule(name, _narrow(part, weight, bias))
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    return module.eval()


def _dense(model: str, classes: int) -> nn.Module:
    if model == "vgg16":
        from shifter.models.vgg import Vgg

        return Vgg([(64,) * 2, (128,) * 2, (256,) * 3, (512,) * 3, (512,) * 3], channels=3, classes=classes)
    from torchvision.models import resnet50

    network: nn.Module = resnet50(weights=None, num_classes=classes)
    return network


def _last_bias(tensors: Tensors) -> NDArray[Any]:
    return tensors["classifier.bias"] if "classifier.bias" in tensors else tensors["fc.bias"]


def _narrow(part: nn.Conv2d | nn.Linear, weight: Tensor, bias: Tensor) -> nn.Module:
    outputs, inputs = weight.shape[:2]
    if isinstance(part, nn.Linear):
        made: nn.Module = nn.Linear(inputs, outputs)
    else:
        size, stride, padding = part.kernel_size, part.stride, part.padding
        made = nn.Conv2d(inputs, outputs, size, stride, padding)  # type: ignore[arg-type]
    made.weight, made.bias = nn.Parameter(weight, False), nn.Parameter(bias, False)
    return made


def require_same(module: nn.Module, variant: Variant, images: NDArray[np.float32]) -> None:
    """Whether the module answers as the variant does; raises AssertionError otherwise."""
    answers = OnnxEngine(variant.graph, variant.tensors).run(images)
    error = relative_error(run(module, images), answers.astype(np.float64))
    assert error <= SAME, f"the module is not the variant: {error:.1e}"


def run(module: nn.Module, images: NDArray[np.float32]) -> NDArray[np.float32]:
    """Eager torch, without gradients: NumPy in, NumPy out, as an engine."""
    with torch.inference_mode():
        answer: NDArray[np.float32] = module(torch.from_numpy(images)).numpy()
    return answer


class Eager:
    """A module as an engine."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module

    def run(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        return run(self._module, images)


class Published:
    """As the paper says of DNNShifter: variants are serialised torch modules, deflated in memory by zlib."""

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        self._deflated = {name: zlib.compress(_serialised(module)) for name, module in modules.items()}

    def switch(self, name: str, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """Inflates a variant, loads it, and answers."""
        stream = io.BytesIO(zlib.decompress(self._deflated[name]))
        return run(torch.load(stream, weights_only=False).eval(), image)


def _serialised(module: nn.Module) -> bytes:
    stream = io.BytesIO()
    torch.save(module, stream)
    return stream.getvalue()


class Supernet:
    """As Dynamic-OFA does: one dense network in memory; a variant is each layer's first channels, copied.

    What that does to accuracy, and the batch norms that it would have to calibrate, are left out.
    """

    def __init__(self, portfolio: Portfolio, modules: Mapping[str, nn.Module]) -> None:
        classes = len(portfolio.input_spec.classes)
        self._dense = _dense(portfolio.model, classes)
        self._active = _dense(portfolio.model, classes).eval()
        for network in (self._dense, self._active):
            for name, part in list(network.named_modules()):
                if isinstance(part, nn.BatchNorm2d):
                    network.set_submodule(name, nn.Identity())
                elif isinstance(part, nn.Conv2d):
                    part.bias = nn.Parameter(torch.zeros(part.out_channels))
            for parameter in network.parameters():
                parameter.requires_grad_(False)
        self._shapes = {
            name: {key: value.shape for key, value in module.state_dict().items()}
            for name, module in modules.items()
        }

    def switch(self, name: str, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """Copies a variant's slices out of the dense network, and answers."""
        dense = self._dense.state_dict()
        for path, part in self._active.named_modules():
            if isinstance(part, nn.Conv2d | nn.Linear):
                for kind in ("weight", "bias"):
                    cut = tuple(map(slice, self._shapes[name][f"{path}.{kind}"]))
                    part._parameters[kind] = nn.Parameter(dense[f"{path}.{kind}"][cut].clone(), False)
        return run(self._active, image)


def serve(path: Path, threads: int) -> None:
    """Answers ``published 64x`` on the standard input, until that ends, with the milliseconds it took."""
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    portfolio = Portfolio.open(path)
    image = np.random.default_rng(0).normal(size=(1, *portfolio.input_spec.shape)).astype(np.float32)
    modules = {}
    for name in portfolio.names:
        variant = portfolio.inflate(name)
        modules[name] = pruned_module(portfolio.model, variant.tensors)
        require_same(modules[name], variant, np.concatenate([image, -image, image**2]))
    ways: dict[str, Published | Supernet] = {
        "published": Published(modules),
        "supernet": Supernet(portfolio, modules),
    }
    del modules
    for line in sys.stdin:
        way, name = line.split()
        began = time.perf_counter()
        ways[way].switch(name, image)
        print(1000 * (time.perf_counter() - began), flush=True)


if __name__ == "__main__":
    serve(Path(sys.argv[1]), int(sys.argv[2]))
