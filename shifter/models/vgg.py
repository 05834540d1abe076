"""VGG for small images: convolutions with batch norm, one linear layer (as in OpenLTH)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


class Vgg(nn.Module):
    """Stages of 3x3 convolutions (padding 1, no bias), each with batch norm and ReLU.

    A 2x2 max pooling stands between stages; a global average pooling and one linear layer end it.
    Tensor names: ``stages.<stage>.<layer>.conv.weight``, ``stages.<stage>.<layer>.norm.*``,
    ``classifier.*``.

    Args:
        stages: widths (output channels) of the convolutions of each stage.
    """

    def __init__(self, stages: Sequence[Sequence[int]], *, channels: int, classes: int) -> None:
        super().__init__()
        self.stages = nn.ModuleList()
        for widths in stages:
            stage = nn.Sequential()
            for width in widths:
                stage.append(ConvNormRelu(channels, width))
                channels = width
            self.stages.append(stage)
        self.classifier = nn.Linear(channels, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Images (batch, channels, height, width) to logits (batch, classes)."""
        features = images
        for index, stage in enumerate(self.stages):
            if index > 0:
                features = nn.functional.max_pool2d(features, 2)
            features = stage(features)
        logits: Tensor = self.classifier(features.mean((2, 3)))
        return logits


class ConvNormRelu(nn.Module):
    """A 3x3 convolution that keeps height and width, batch norm, ReLU."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, features: Tensor) -> Tensor:
        return nn.functional.relu(self.norm(self.conv(features)))
