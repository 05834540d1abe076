"""Small networks as users bring them, with dead filters and batch norm that has seen data."""

import torch
from torch import nn
from torch.nn import functional


class Plain(nn.Module):
    """VGG-like: padded convolutions with batch norm, pooling, two linear layers."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(16)
        self.conv2 = nn.Conv2d(16, 24, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(24)
        self.fc1 = nn.Linear(24 * 16, 32)
        self.drop = nn.Dropout(0.5)
        self.fc2 = nn.Linear(32, 5)

    def forward(self, images):
        features = functional.max_pool2d(torch.relu(self.norm1(self.conv1(images))), 2)
        features = torch.relu(self.norm2(self.conv2(features)))
        return self.fc2(self.drop(torch.relu(self.fc1(torch.flatten(features, 1)))))


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.conv1 = nn.Conv2d(16, 32, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(32)
        self.conv2 = nn.Conv2d(32, 16, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(16)
        self.fc = nn.Linear(16, 5)

    def forward(self, images):
        features = torch.relu(self.norm(self.stem(images)))
        inner = torch.relu(self.norm1(self.conv1(features)))
        return self.fc(torch.relu(self.norm2(self.conv2(inner)) + features).mean((2, 3)))


class Views(nn.Module):
    """Sizes are written into its code."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1)
        self.conv2 = nn.Conv2d(16, 16, 3, padding=1)
        self.conv3 = nn.Conv2d(16, 16, 3, padding=1)
        self.fc = nn.Linear(16 * 64, 5)

    def forward(self, images):
        features = torch.relu(self.conv2(torch.relu(self.conv1(images))))
        features = features.view(-1, 2, 8, 8, 8).sum(1)
        features = torch.cat([features, features], 1)
        return self.fc(torch.relu(self.conv3(features)).view(-1, 1024))


class Checked(nn.Module):
    """A size is asserted, so nothing in the graph tells of it."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3)
        self.fc = nn.Linear(16, 5)

    def forward(self, images):
        features = torch.relu(self.conv(images))
        assert features.shape[1] == 16
        return self.fc(features.mean((2, 3)))


class Scaled(Checked):
    """It computes with its own width."""

    def forward(self, images):
        features = torch.relu(self.conv(images))
        return self.fc(features.mean((2, 3)) * features.shape[1])


class Auxiliary(nn.Module):
    """A second classifier for training, as GoogLeNet has."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3)
        self.aux = nn.Linear(16, 5)
        self.fc = nn.Linear(16, 5)

    def forward(self, images):
        features = torch.relu(self.conv(images)).mean((2, 3))
        if self.training:
            return self.fc(features), self.aux(features)
        return self.fc(features)


class Shared(nn.Module):
    """One convolution is used twice."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.twice = nn.Conv2d(16, 16, 3, padding=1)
        self.last = nn.Conv2d(16, 24, 3)
        self.fc = nn.Linear(24, 5)

    def forward(self, images):
        features = torch.relu(self.stem(images))
        for _ in range(2):
            features = torch.relu(self.twice(features))
        return self.fc(torch.relu(self.last(features)).mean((2, 3)))


class Functional(nn.Module):
    """Its first weight belongs to no layer of torch's."""

    def __init__(self):
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(16, 3, 3, 3) / 5)
        self.norm = nn.BatchNorm2d(16)
        self.conv = nn.Conv2d(16, 24, 3)
        self.fc = nn.Linear(24, 5)

    def forward(self, images):
        features = torch.relu(self.norm(functional.conv2d(images, self.kernel)))
        return self.fc(torch.relu(self.conv(features)).mean((2, 3)))


def network(kind, dead=0.6, seed=0):
    """One of the above with ``dead`` of the filters of every convolution zero, in evaluation mode."""
    torch.manual_seed(seed)
    made = kind()
    for norm in (part for part in made.modules() if isinstance(part, nn.BatchNorm2d)):
        norm.weight.data.uniform_(0.5, 1.5)
        norm.bias.data.uniform_(-0.5, 0.5)
        norm.momentum = 1.0
    kill(made, dead)
    with torch.no_grad():
        made(torch.randn(16, 3, 8, 8))
    return made.eval()


def kill(made, dead):
    for part in made.modules():
        if isinstance(part, nn.Conv2d):
            part.weight.data[: int(dead * part.out_channels)] = 0
