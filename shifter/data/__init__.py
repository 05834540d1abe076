"""Labelled images: found, decoded once, checked, split, and read by a network batch by batch."""

from shifter.data.dataset import Dataset, Skipped, Split, check_images
from shifter.data.images import Draw, Images
from shifter.data.load import load

__all__ = ["Dataset", "Draw", "Images", "Skipped", "Split", "check_images", "load"]
