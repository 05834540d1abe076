"""The weights that a network starts from."""

from __future__ import annotations

import torch
from torch import nn

PRUNABLE = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


def initialise(module: nn.Module, seed: int) -> None:
    """Gives ``module`` its first weights, a function of ``seed`` alone, in place.

    Convolutions and linear layers: He et al. 2015, normal, by fan-in; their biases zero. Batch norm:
    scale one, shift zero, and statistics of a standard normal.
    """
    generator = torch.Generator().manual_seed(seed)
    for layer in module.modules():
        if isinstance(layer, PRUNABLE):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=generator)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.reset_parameters()


def prunable_names(module: nn.Module) -> tuple[str, ...]:
    """The weight tensors of convolutions and linear layers, by ``state_dict`` name, sorted.

    Biases and batch norm are never pruned.
    """
    return tuple(
        sorted(
            f"{name}.weight" if name else "weight"
            for name, layer in module.named_modules()
            if isinstance(layer, PRUNABLE)
        )
    )
