"""ResNet for small images (He et al. 2016, §4.2), with projection shortcuts."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


class ResNet(nn.Module):
    """A 3x3 stem, stages of basic blocks, global average pooling, one linear layer.

    Every stage after the first begins with stride 2. Tensor names: ``stem.conv.weight``,
    ``stem.norm.*``, ``stages.<stage>.<block>.{conv1,norm1,conv2,norm2}.*``, ``….shortcut.conv.weight``
    and ``….shortcut.norm.*`` where the shape changes, ``classifier.*``.

    Args:
        widths: channels of each stage.
        blocks: basic blocks (two convolutions each) per stage.
    """

    def __init__(self, widths: Sequence[int], blocks: int, *, channels: int, classes: int) -> None:
        super().__init__()
        width = widths[0]
        self.stem = ConvNorm(channels, width, kernel=3, stride=1)
        self.stages = nn.ModuleList()
        for index, wider in enumerate(widths):
            stage = nn.Sequential()
            for block in range(blocks):
                stage.append(BasicBlock(width, wider, stride=2 if index > 0 and block == 0 else 1))
                width = wider
            self.stages.append(stage)
        self.classifier = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Images (batch, channels, height, width) to logits (batch, classes)."""
        features = nn.functional.relu(self.stem(images))
        for stage in self.stages:
            features = stage(features)
        logits: Tensor = self.classifier(features.mean((2, 3)))
        return logits


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut: the identity, or a projection where the shape changes."""

    def __init__(self, channels: int, width: int, *, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels != width:
            self.shortcut = ConvNorm(channels, width, kernel=1, stride=stride)

    def forward(self, features: Tensor) -> Tensor:
        inner = nn.functional.relu(self.norm1(self.conv1(features)))
        return nn.functional.relu(self.norm2(self.conv2(inner)) + self.shortcut(features))


class ConvNorm(nn.Module):
    """A convolution without bias, then batch norm."""

    def __init__(self, channels: int, width: int, *, kernel: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, width, kernel, stride=stride, padding=kernel // 2, bias=False)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, features: Tensor) -> Tensor:
        normalised: Tensor = self.norm(self.conv(features))
        return normalised
