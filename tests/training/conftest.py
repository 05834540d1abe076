"""A network and a recipe small enough to train in a second."""

import pytest
import torch

from shifter.data import load
from shifter.recipe import Recipe

RECIPE = {
    "name": "tiny",
    "seed": 3,
    "workers": 2,
    "model": {"name": "vgg", "stages": [[8], [12]]},
    "data": {"name": "digits", "validation": 0.1, "test": 0.2},
    "training": {
        "epochs": 3,
        "batch_size": 65,
        "learning_rate": 0.2,
        "weight_decay": 0.001,
        "milestones": ["2ep"],
    },
    # In the middle of an epoch: harder than between two.
    "pruning": {"ratios": [2.0, 4.0, 16.0], "rewind_to": "25it"},
}


@pytest.fixture(scope="session")
def recipe():
    return Recipe.model_validate(RECIPE)


@pytest.fixture(scope="session")
def dataset(recipe):
    return load(recipe.data, recipe.seed)


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """Bit-identity is promised for a fixed number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
    torch.set_flush_denormal(False)
