"""What test_resume.py runs in each of several processes, one of which may kill itself."""

import itertools
import os
import signal
import sys

import torch
import torch.distributed as dist

from shifter.data import load
from shifter.errors import StoppedError
from shifter.run import Run
from shifter.training.archive import Archive, forget_unfinished
from shifter.training.imp import iterative_magnitude_pruning
from shifter.training.schedule import Schedule

STOPPED = 3


def die_after(iterations):
    original, done = Schedule.learning_rate_at, 0

    def learning_rate_at(schedule, step):  # asked for at every iteration
        nonlocal done
        done += 1
        if done == iterations:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(schedule, step)

    Schedule.learning_rate_at = learning_rate_at


def main(rank, size, folder, iterations):
    """One worker; it kills itself when it has done so many ``iterations``; 0: never.

    Negative: it asks to stop then.
    """
    torch.set_num_threads(1)
    die_after(iterations)
    meeting = folder.with_name(f"{folder.name}-meeting")
    dist.init_process_group("gloo", f"file://{meeting}", rank=rank, world_size=size)
    run = Run.attach(str(folder), "run")
    dataset = load(run.recipe.data, run.recipe.seed)
    notes = []

    def on_event(event):
        if event["event"] == "note":
            notes.append(event["text"])

    steps = itertools.count(1)
    try:
        iterative_magnitude_pruning(
            run.recipe,
            dataset,
            Archive(run, run.recipe.digest()),
            on_event,
            asked_to_stop=lambda: next(steps) == -iterations,
        )
    except StoppedError:
        sys.exit(STOPPED)
    if rank == 0:
        forget_unfinished(run)
        folder.with_name(f"{folder.name}-notes").write_text("\n".join(notes))
    dist.destroy_process_group()
