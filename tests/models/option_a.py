"""A ResNet-20 as a user would bring it: shortcuts without weights (He et al. 2016, option A)."""

import torch
from torch import nn
from torch.nn import functional


class Block(nn.Module):
    def __init__(self, channels, width, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.added = width - channels

    def forward(self, features):
        inner = torch.relu(self.bn1(self.conv1(features)))
        if self.added:
            half = self.added // 2
            features = functional.pad(features[:, :, ::2, ::2], (0, 0, 0, 0, half, half))
        return torch.relu(self.bn2(self.conv2(inner)) + features)


class Network(nn.Module):
    def __init__(self, classes, channels, blocks):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(*(Block(16, 16, 1) for _ in range(blocks)))
        self.layer2 = nn.Sequential(Block(16, 32, 2), *(Block(32, 32, 1) for _ in range(blocks - 1)))
        self.layer3 = nn.Sequential(Block(32, 64, 2), *(Block(64, 64, 1) for _ in range(blocks - 1)))
        self.linear = nn.Linear(64, classes)

    def forward(self, images):
        features = torch.relu(self.bn1(self.conv1(images)))
        features = self.layer3(self.layer2(self.layer1(features)))
        return self.linear(features.mean((2, 3)))


def network(classes, channels, blocks=3):
    return Network(classes, channels, blocks)
