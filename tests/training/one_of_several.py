"""What test_distributed.py runs in each of several processes: python one_of_several.py RANK SIZE FOLDER."""

import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from shifter.data import Images, load
from shifter.errors import TrainingError
from shifter.recipe import Recipe
from shifter.run import Run
from shifter.training.archive import Archive
from shifter.training.imp import iterative_magnitude_pruning
from shifter.training.loop import evaluate, train_round
from shifter.training.network_state import state_of
from shifter.training.ranking import dense_mask
from shifter.training.round import Observer, Round
from shifter.training.schedule import Schedule
from shifter.values import CompressionRatio, Mask, Step


class WithoutNorm(nn.Module):
    """Its gradient is that of the global batch, however the batch is shared out."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(1, 8, 3)
        self.linear = nn.Linear(8, 10)

    def forward(self, images):
        return self.linear(torch.relu(self.conv(images)).mean((2, 3)))


def train_without_norm(recipe, dataset):
    network = WithoutNorm()
    start = state_of(network)
    return train_round(
        network,
        dataset,
        Round(0, CompressionRatio(1), dense_mask(start, ["conv.weight"]), start, Step(0)),
        recipe.training,
        Schedule.of(recipe, len(dataset.train)),
        recipe.seed,
        Observer(lambda epoch: None),
    )


def train_apart(recipe, dataset, *, masks=0, weights=0):
    """Trains with another mask, or other weights, than the rest; the error that this gives."""
    network = WithoutNorm()
    start = state_of(network)
    kept = np.ones(start["conv.weight"].shape, np.bool_)
    kept[masks] = False
    start["conv.bias"] += weights
    try:
        train_round(
            network,
            dataset,
            Round(0, CompressionRatio(1), Mask({"conv.weight": kept}), start, Step(0)),
            recipe.training,
            Schedule.of(recipe, len(dataset.train)),
            recipe.seed,
            Observer(lambda epoch: None),
        )
    except TrainingError as error:
        return str(error)
    return "no error"


def main(rank, folder):
    recipe = Recipe.model_validate_json((folder / "recipe.json").read_text())
    dataset = load(recipe.data, recipe.seed)
    events = []

    def train(store):
        run = Run.attach(str(store), "run")
        iterative_magnitude_pruning(recipe, dataset, Archive(run, recipe.digest()), events.append)

    train(folder / "unbroken")
    if rank == 0:
        # Stopped after round 1.
        shutil.copytree(folder / "unbroken", folder / "stopped")
        for key in ("round-02.arrow", "round-03.arrow"):
            (folder / "stopped/run/rounds" / key).unlink()
    dist.barrier()
    train(folder / "stopped")

    trained = train_without_norm(recipe, dataset)
    np.savez(folder / f"without-norm-{rank}.npz", **trained.tensors)
    network = WithoutNorm()
    result = {
        "events": events,
        "accuracy": evaluate(network, Images.of(dataset.train, dataset.input_spec)),
        "masks": train_apart(recipe, dataset, masks=rank),
        "weights": train_apart(recipe, dataset, weights=rank),
    }
    (folder / f"result-{rank}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    rank, size, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=size)
    main(rank, folder)
    dist.destroy_process_group()
    # Not by way of the interpreter's finalisation: see shifter/training/__main__.py.
    os._exit(0)
