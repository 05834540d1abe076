"""A split as a network reads it: batches by index, cropped, mirrored and normalised on the device."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from shifter.data.dataset import NO_AUGMENTATION, Split
from shifter.data_spec import Augmentation
from shifter.values import InputSpec

_CHUNK = 4096
"""Images moved to an accelerator at a time."""


@dataclass(frozen=True)
class Draw:
    """The chances that one epoch takes with its images.

    What befalls an image follows from these numbers and its own index alone: neither from the batch
    or the worker it is in, nor from the device.
    """

    augmentation: Augmentation
    seed: int
    round: int
    epoch: int

    def of(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """What befalls the images ``indices``: int64 (images, 3).

        Columns: how many rows, and how many columns, the window lies off the top left corner (0 to
        twice the border); 1 if the image is mirrored, else 0.
        """
        key = np.random.SeedSequence([self.seed, self.round, self.epoch]).generate_state(1, np.uint64)
        bits = _mix(key + (indices.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15))
        places = np.uint64(2 * self.augmentation.crop + 1)
        low, middle = bits & np.uint64(0xFFFFFF), bits >> np.uint64(24) & np.uint64(0xFFFFFF)
        mirrored = bits >> np.uint64(63) if self.augmentation.flip else np.zeros_like(bits)
        drawn = [low * places >> np.uint64(24), middle * places >> np.uint64(24), mirrored]
        return np.stack(drawn, axis=1).astype(np.int64)


def _mix(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's output function (Steele, Lea, Flood, 2014): every bit depends on every bit."""
    z = (z ^ z >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ z >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return z ^ z >> np.uint64(31)


@dataclass(frozen=True)
class Images:
    """A split, on the device that reads it. Made by :meth:`of`.

    On an accelerator its pixels are held there, as stored, if they take ``memory_limit`` bytes or
    less. Else, and on a CPU always, a batch is gathered from the split's array, which may be a
    memory map that the node's processes share.

    Args:
        labels: int64 (images,), on the device.
        held: the pixels as stored, on the accelerator; None where a batch is gathered.
        scale: ``pixel_max``, mean and deviation, on the device.
    """

    split: Split
    labels: Tensor
    held: Tensor | None
    scale: tuple[Tensor, Tensor, Tensor]

    @classmethod
    def of(
        cls,
        split: Split,
        input_spec: InputSpec,
        *,
        device: torch.device | str = "cpu",
        memory_limit: int = 2**32,
    ) -> Images:
        """The images of ``split``, normalised by ``input_spec`` whenever they are read."""
        labels = torch.from_numpy(split.labels).to(device)
        pixel_max, mean, std = (
            torch.tensor(numbers, dtype=torch.float32, device=device).view(1, -1, 1, 1)
            for numbers in (input_spec.pixel_max, input_spec.mean, input_spec.std)
        )
        held = None
        if labels.device.type != "cpu" and split.nbytes <= memory_limit:
            held = _held(split, labels.device)
        return cls(split, labels, held, (pixel_max, mean, std))

    def __len__(self) -> int:
        return len(self.split)

    def read(self, indices: Tensor, draw: Draw | None = None) -> Tensor:
        """The images ``indices`` as the network's input: float32, ``channels_last``, on the device.

        Without ``draw``, bit for bit what ``input_spec.normalise`` gives (on a CPU).

        Args:
            indices: int64 (batch,), on the CPU; they count within the split.
            draw: to vary the images by; None leaves them as they are.
        """
        chosen, device = indices.numpy(), self.labels.device
        if self.held is None:
            pixels = torch.from_numpy(self.split.take(chosen)).to(device)
        else:
            pixels = self.held[indices.to(device)]
        if draw is not None and draw.augmentation != NO_AUGMENTATION:
            drawn = torch.from_numpy(draw.of(chosen)).to(device)
            pixels = augment(pixels, drawn, draw.augmentation.crop)
        pixels = pixels.contiguous(memory_format=torch.channels_last).to(torch.float32)
        # Divided by a tensor: by a number, an accelerator would multiply by its rounded inverse.
        pixel_max, mean, std = self.scale
        return pixels.div_(pixel_max).sub_(mean).div_(std)


def augment(pixels: Tensor, drawn: Tensor, border: int) -> Tensor:
    """Cuts a window of each image's own size out of the image with a black border, mirrored or not.

    Args:
        pixels: (batch, channels, height, width), any dtype.
        drawn: as :meth:`Draw.of` gives it, on the same device.
        border: pixels on each side.
    """
    batch, _, height, width = pixels.shape
    bordered = functional.pad(pixels, [border] * 4)
    down, right, mirrored = (column.unsqueeze(1) for column in drawn.unbind(1))
    across = torch.arange(width, device=pixels.device)
    rows = down + torch.arange(height, device=pixels.device)
    columns = right + torch.where(mirrored == 1, width - 1 - across, across)
    image = torch.arange(batch, device=pixels.device)[:, None, None]
    cut: Tensor = bordered[image, :, rows[:, :, None], columns[:, None, :]]
    return cut.permute(0, 3, 1, 2)


def _held(split: Split, device: torch.device) -> Tensor:
    """All pixels on the device, by way of a chunk at a time."""
    first = torch.from_numpy(split.stored[:1].copy())
    held = torch.empty((len(split), *first.shape[1:]), dtype=first.dtype, device=device)
    for chunk in np.array_split(np.arange(len(split)), len(split) // _CHUNK + 1):
        held[chunk[0] : chunk[-1] + 1] = torch.from_numpy(split.take(chunk))
    return held
