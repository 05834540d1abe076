"""A sparse checkpoint is little more than its masks and values, whatever the network."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from shifter.model_spec import ResNetModel
from shifter.models import build, prunable_names
from shifter.sparse import CheckpointMeta, encode, most_bytes
from shifter.values import Mask


def vgg16() -> nn.Module:
    return torchvision.models.vgg16_bn(num_classes=10).features


def resnet50() -> nn.Module:
    return torchvision.models.resnet50(num_classes=200)


def resnet20() -> nn.Module:
    """The smallest of OpenLTH's."""
    return build(ResNetModel(name="resnet", widths=(16, 32, 64), blocks=3), classes=10, channels=3)


@pytest.mark.parametrize("network_of", [vgg16, resnet50, resnet20])
@pytest.mark.parametrize("ratio", [1, 2, 4, 8, 16, 64, 256])
def test_it_is_within_ten_percent_of_masks_and_values(network_of, ratio):
    with torch.device("meta"):
        network = network_of()
    shapes = {name: tuple(t.shape) for name, t in network.state_dict().items() if t.is_floating_point()}
    rng = np.random.default_rng(0)
    tensors = {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    masks = {name: rng.random(shapes[name]) < 1 / ratio for name in prunable_names(network)}
    for name, kept in masks.items():
        tensors[name][~kept] = 0
    mask = Mask(masks)
    size = len(encode(tensors, mask, CheckpointMeta(1, 0, float(ratio), 0, 0, mask.digest())))
    rest = sum(tensor.nbytes for name, tensor in tensors.items() if name not in mask)
    least = mask.total / 8 * (ratio > 1) + 4 * mask.kept + rest
    assert size <= 1.1 * least
    foretold = most_bytes(mask.total // 8 * (ratio > 1) + 4 * mask.kept + rest, len(tensors))
    assert size <= foretold
    if ratio <= 8:  # beyond, most of it is masks, which deflate
        assert foretold <= 1.2 * size
