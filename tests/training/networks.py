"""Users' networks."""

import time
from pathlib import Path

import torch
from torch import nn


def small(classes, channels):
    """With batch norm and dropout."""
    return nn.Sequential(
        nn.Conv2d(channels, 6, 3, padding=1, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Dropout(0.2),
        nn.Flatten(),
        nn.Linear(96, classes),
    )


def slow(classes, channels, until):
    """The same, but a step takes a while until there is a file of that name."""
    return nn.Sequential(Slow(Path(until)), small(classes, channels))


class Slow(nn.Module):
    def __init__(self, until):
        super().__init__()
        self.until = until

    def forward(self, images):
        if self.training and not torch.compiler.is_exporting() and not self.until.exists():
            time.sleep(0.2)
        return images
