"""What tests of networks share: how images look, and where big files may lie."""

import os
from pathlib import Path

import pytest
import torch

from shifter.values import InputSpec

CLASSES = ("a", "b", "c", "d", "e")


def images_of(channels, height, width, classes=CLASSES):
    mean, std = (0.4, 0.5, 0.6)[:channels], (0.2, 0.3, 0.2)[:channels]
    return InputSpec(channels, height, width, 255.0, mean, std, tuple(classes))


@pytest.fixture(scope="module")
def rgb():
    """Images of 3x8x6 and five classes."""
    return images_of(3, 8, 6)


@pytest.fixture(scope="session")
def shared_data():
    """A folder of published data and weights beside the repository, which not everyone has."""
    default = Path(__file__).parents[3] / "shared" / "data"
    folder = Path(os.environ.get("SHIFTER_SHARED_DATA", default))
    if not folder.is_dir():
        pytest.skip(f"there is no folder {folder}; SHIFTER_SHARED_DATA can name another")
    return folder


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """Small networks: more threads would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
