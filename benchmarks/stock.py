"""The loop to compare with: PyTorch as its tutorials and OpenLTH write it.

A DataLoader reads images one by one and varies each by torchvision's transforms; everything is
float32 in PyTorch's default memory format; SGD is PyTorch's default one; the learning rate is set
before each step, and the loss is read at each step, as for a progress bar.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from shifter.data.dataset import Split
from shifter.values import InputSpec


class _Pictures(Dataset[tuple[Tensor, int]]):
    def __init__(self, images: np.ndarray, labels: np.ndarray, spec: InputSpec, crop: int) -> None:
        self._images = np.ascontiguousarray(images.transpose(0, 2, 3, 1))
        self._labels = labels
        self._transform = transforms.Compose(
            [
                transforms.RandomHorizontalFlip(),
                transforms.RandomCrop(spec.height, padding=crop),
                transforms.ToTensor(),
                transforms.Normalize(spec.mean, spec.std),
            ]
        )

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self._transform(Image.fromarray(self._images[index])), int(self._labels[index])


class StockLoop:
    """Trains ``network``, epoch after epoch; see the module's docstring.

    Args:
        workers: processes of the DataLoader; 0 reads in the training process.
    """

    def __init__(
        self,
        network: nn.Module,
        split: Split,
        spec: InputSpec,
        *,
        batch_size: int,
        workers: int,
        crop: int = 4,
    ) -> None:
        self._network = network.train()
        self._loader: DataLoader[tuple[Tensor, int]] = DataLoader(
            _Pictures(split.images, split.labels, spec, crop),
            batch_size=batch_size,
            shuffle=True,
            drop_last=True,
            num_workers=workers,
            persistent_workers=workers > 0,
        )
        self._optimiser = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
        self._criterion = nn.CrossEntropyLoss()

    def epoch(self) -> float:
        """Seconds of one epoch."""
        began = time.perf_counter()
        for images, labels in self._batches():
            self._optimiser.param_groups[0]["lr"] = 0.1
            self._optimiser.zero_grad()
            loss = self._criterion(self._network(images), labels)
            loss.backward()
            self._optimiser.step()
            loss.item()
        return time.perf_counter() - began

    def _batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        yield from self._loader
