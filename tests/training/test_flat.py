"""Parameters side by side: the same network, whose gradients and mask are each one tensor."""

import numpy as np
import pytest
import torch
from torch import nn

from shifter.training.flat import FlatParameters
from shifter.values import Mask


@pytest.fixture
def network():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.Flatten(), nn.Linear(5 * 36, 7))
    return network.to(memory_format=torch.channels_last)


def everything(network):
    return Mask({"0.weight": np.ones((5, 3, 3, 3), np.bool_), "3.weight": np.ones((7, 180), np.bool_)})


def gradients(network, images):
    return torch.autograd.grad(network(images).square().sum(), list(network.parameters()))


def test_it_is_the_same_network_and_has_the_same_gradients(network):
    images = torch.randn(4, 3, 8, 8)
    before = [p.detach().clone() for p in network.parameters()]
    expected = gradients(network, images)
    flat = FlatParameters(network, everything(network))
    assert all(torch.equal(p, was) for p, was in zip(network.parameters(), before, strict=True))
    for _ in range(2):
        flat.zero_gradients()
        network(images).square().sum().backward()
        found = flat.named(flat.weights.grad)
        assert all(torch.equal(g, e) for g, e in zip(found.values(), expected, strict=True))


def test_a_change_of_the_one_is_a_change_of_the_other(network):
    flat = FlatParameters(network, everything(network))
    with torch.no_grad():
        flat.weights.mul_(2)
        network[3].bias.fill_(4)
    named = flat.named(flat.weights.data)
    assert all(torch.equal(named[name], p) for name, p in network.named_parameters())
    digest = flat.digest()
    assert torch.equal(flat.filled(named), flat.weights)
    network[3].bias.data[0] = 5
    assert flat.digest() != digest


def test_exactly_the_pruned_weights_are_zeroed_to_the_last_bit(network):
    kept = np.ones((5, 3, 3, 3), np.bool_)
    kept[1, :, 0] = kept[4] = False
    flat = FlatParameters(network, Mask({"0.weight": kept}))
    with torch.no_grad():
        flat.weights.fill_(-np.inf)
        flat.prune()
    weight = network[0].weight.detach().contiguous().numpy()
    assert np.array_equal(weight.view(np.uint32) == 0, ~kept)
    assert torch.isinf(network[3].weight).all()


def test_a_frozen_parameter_is_pruned_and_else_left_alone(network):
    network[0].weight.requires_grad_(False)
    kept = np.ones((5, 3, 3, 3), np.bool_)
    kept[2] = False
    flat = FlatParameters(network, Mask({"0.weight": kept}))
    assert "0.weight" not in flat.named(flat.weights)
    assert not network[0].weight[2].any()
    assert network[0].weight[3].all()
