"""Networks are what their recipe says, and start where their seed says."""

import numpy as np
import pytest
import torch

from shifter.model_spec import ResNetModel, VggModel
from shifter.models import build, initialise, prunable_names

VGG = VggModel(name="vgg", stages=((4, 6), (8,)))
RESNET = ResNetModel(name="resnet", widths=(4, 8), blocks=2)


def shapes(network):
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


def test_vgg_has_the_widths_of_its_recipe():
    found = shapes(build(VGG, classes=5, channels=3))
    assert [s for n, s in found.items() if n.endswith("conv.weight")] == [
        (4, 3, 3, 3),
        (6, 4, 3, 3),
        (8, 6, 3, 3),
    ]
    assert found["classifier.weight"] == (5, 8)


def test_resnet_projects_where_the_shape_changes_and_nowhere_else():
    found = shapes(build(RESNET, classes=5, channels=3))
    shortcuts = {n: s for n, s in found.items() if n.endswith("shortcut.conv.weight")}
    assert shortcuts == {"stages.1.0.shortcut.conv.weight": (8, 4, 1, 1)}
    assert found["stem.conv.weight"] == (4, 3, 3, 3)
    assert found["classifier.weight"] == (5, 8)


def test_an_identity_shortcut_adds_what_came_in():
    network = build(RESNET, classes=5, channels=3).eval()
    block = network.stages[0][0]
    for convolution in (block.conv1, block.conv2):
        torch.nn.init.zeros_(convolution.weight)
    features = torch.rand(2, 4, 8, 8)
    assert torch.equal(block(features), features)


@pytest.mark.parametrize(("spec", "size"), [(VGG, 8), (VGG, 7), (RESNET, 8), (RESNET, 5)])
def test_answers_have_one_logit_a_class(spec, size):
    network = build(spec, classes=5, channels=3).eval()
    assert network(torch.zeros(2, 3, size, size)).shape == (2, 5)


@pytest.mark.parametrize("spec", [VGG, RESNET])
def test_first_weights_follow_from_the_seed_alone(spec):
    networks = [build(spec, classes=5, channels=3) for _ in range(3)]
    before = torch.get_rng_state()
    for network, seed in zip(networks, (7, 7, 8), strict=True):
        initialise(network, seed)
    assert torch.equal(before, torch.get_rng_state()), "the global random state is not touched"
    first, same, other = (network.state_dict() for network in networks)
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert all(not torch.equal(first[name], other[name]) for name in prunable_names(networks[0]))


def test_first_weights_have_he_deviation():
    network = build(VggModel(name="vgg", stages=((64, 64),)), classes=5, channels=3)
    initialise(network, 0)
    weights = network.state_dict()["stages.0.1.conv.weight"].numpy()
    assert np.std(weights) == pytest.approx(np.sqrt(2 / (64 * 9)), rel=0.02)


def test_only_convolutions_and_linear_layers_are_prunable():
    assert prunable_names(build(VGG, classes=5, channels=3)) == (
        "classifier.weight",
        "stages.0.0.conv.weight",
        "stages.0.1.conv.weight",
        "stages.1.0.conv.weight",
    )
    names = prunable_names(build(RESNET, classes=5, channels=3))
    assert "stages.1.0.shortcut.conv.weight" in names
    assert not any("norm" in name or name.endswith("bias") for name in names)
