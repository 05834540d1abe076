"""The weights that a network starts from."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

PRUNABLE = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


def initialise(module: nn.Module, seed: int, scheme: Literal["he", "openlth"] = "he") -> None:
    """Draws first weights for ``module``, a function of ``seed`` and ``scheme`` alone, in place.

    Convolutions and linear layers: He et al. 2015, normal, by fan-in. Batch norm: shift zero, and the
    statistics of a standard normal. What else a network may have stays as it is. Then

    - ``he``: biases zero; batch norm's scale one.
    - ``openlth``: as OpenLTH does by default (``kaiming_normal`` with batch norm ``uniform``): biases
      uniform within 1/√fan-in; batch norm's scale uniform in [0, 1).
    """
    generator = torch.Generator().manual_seed(seed)
    for layer in module.modules():
        if isinstance(layer, PRUNABLE):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=generator)
            if layer.bias is not None and scheme == "he":
                nn.init.zeros_(layer.bias)
            elif layer.bias is not None:
                bound = layer.weight[0].numel() ** -0.5
                nn.init.uniform_(layer.bias, -bound, bound, generator=generator)
        elif isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.reset_parameters()
            if scheme == "openlth" and layer.affine:
                nn.init.uniform_(layer.weight, 0.0, 1.0, generator=generator)


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
