"""What a recipe will take, without doing it (``generate --dry-run``)."""

from __future__ import annotations

import math
from typing import Any

from shifter.data import load
from shifter.models import build
from shifter.recipe import Recipe
from shifter.sparse import most_bytes
from shifter.training.imp import check
from shifter.training.ranking import tensors_to_prune
from shifter.values import CompressionRatio

FLOAT_BYTES = 4
REPORT_BYTES = 6_000_000
"""report.html, most of which is the plotting library in it."""


def estimate(recipe: Recipe) -> dict[str, Any]:
    """Rounds, steps and storage of ``recipe``, as plain data. Reads the data; trains nothing.

    Storage is an upper bound, in bytes: variants and portfolio are counted as if nothing could be
    removed from a network but its zeros.

    Raises:
        RecipeError, DataError: what training would refuse as well.
    """
    dataset = load(recipe.data, recipe.seed)
    schedule = check(recipe, dataset)
    classes, channels = len(dataset.input_spec.classes), dataset.input_spec.channels
    network = build(recipe.model, classes=classes, channels=channels)
    sizes = {
        name: math.prod(tensor.shape)
        for name, tensor in network.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    prunable = sum(sizes[name] for name in tensors_to_prune(network, recipe.pruning.exclude))
    rest = sum(sizes.values()) - prunable

    rounds = []
    for index, ratio in enumerate(recipe.ratio_of_round):
        kept = CompressionRatio(ratio).kept(prunable)
        mask_bytes = 0 if kept == prunable else math.ceil(prunable / 8)
        rounds.append(
            {
                "round": index,
                "ratio": ratio,
                "nonzero_weights": kept,
                "steps": schedule.end.iteration - (schedule.rewind.iteration if index else 0),
                "checkpoint_bytes": most_bytes(mask_bytes + FLOAT_BYTES * (kept + rest), len(sizes)),
            }
        )
    checkpoints = sum(r["checkpoint_bytes"] for r in rounds)
    storage = {
        "checkpoints": checkpoints,
        "variants": FLOAT_BYTES * sum(sizes.values()) * len(rounds),
        "portfolio": checkpoints,
        "report": REPORT_BYTES,
        # The rewind point, and weights and momentum in the middle of a round, with the copy that is
        # written beside them.
        "resume": 5 * FLOAT_BYTES * sum(sizes.values()),
    }
    return {
        "images": {
            "train": len(dataset.train),
            "validation": len(dataset.validation),
            "test": len(dataset.test),
            "skipped": dataset.skipped.count,
        },
        "parameters": sum(p.numel() for p in network.parameters()),
        "prunable_weights": prunable,
        "workers": recipe.resolved()["workers"],
        "rounds": rounds,
        "steps": sum(r["steps"] for r in rounds),
        "storage_bytes": {**storage, "total": sum(storage.values())},
    }
