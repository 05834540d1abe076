"""What layers cost, in every family: what torch itself multiplies where it says so."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from shifter.pruning.cost import layer_costs

from .families import Family, family


def multiplied(member: Family) -> dict[str, int]:
    """Multiplications of each convolution and linear layer, from the sizes that pass through it."""
    found: dict[str, int] = {}

    def note(name: str, module: nn.Module, output: torch.Tensor) -> None:
        found[name] = output.numel() * module.weight[0].numel()

    hooks = [
        module.register_forward_hook(lambda m, _, output, name=name: note(name, m, output))
        for name, module in member.network.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    ]
    with torch.no_grad():
        member.network(torch.from_numpy(member.images(1)))
    for hook in hooks:
        hook.remove()
    return found


@pytest.mark.parametrize(
    "name", ["resnext", "densenet", "mobilenet-v3", "shufflenet", "option-a", "convnext"]
)
def test_the_multiply_accumulates_are_those_of_torch(name):
    member = family(name)
    found = {cost.name: cost for cost in layer_costs(member.architecture, (3, member.size, member.size))}
    expected = multiplied(member)
    assert {layer: cost.macs for layer, cost in found.items()} == expected
    for cost in found.values():
        weight = member.tensors[f"{cost.name}.weight"]
        # The export gives every convolution a bias; that of a matrix product is an operator of its own.
        assert cost.weight_bytes - weight.nbytes in (0, 4 * len(weight))


@pytest.mark.parametrize("name", ["vit", "swin", "swin-v2", "maxvit"])
def test_the_products_of_attention_are_counted(name):
    member = family(name)
    found = layer_costs(member.architecture, (3, member.size, member.size))
    assert all(cost.macs for cost in found)
    assert any(cost.weight_bytes == 0 for cost in found), "queries times keys"
