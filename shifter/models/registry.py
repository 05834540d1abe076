"""From a recipe's description of a network to the network."""

from __future__ import annotations

from torch import nn

from shifter.models.resnet import ResNet
from shifter.models.vgg import Vgg
from shifter.recipe import ResNetModel, VggModel


def build(spec: VggModel | ResNetModel, classes: int, channels: int) -> nn.Module:
    """The network that ``spec`` describes, float32, in training mode, with torch's default weights.

    Args:
        classes: outputs of the network.
        channels: channels of the images that it reads.
    """
    if isinstance(spec, VggModel):
        return Vgg(spec.stages, channels=channels, classes=classes)
    return ResNet(spec.widths, spec.blocks, channels=channels, classes=classes)
