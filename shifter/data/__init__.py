"""Labelled images: reading, checking, splitting."""

from shifter.data.dataset import Dataset, Split, check_images
from shifter.data.load import load

__all__ = ["Dataset", "Split", "check_images", "load"]
