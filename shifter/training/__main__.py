"""Phase 1 without Ray: in one process, or in as many as torchrun starts.

::

    python -m shifter.training jobs/recipes/digits.yaml --store runs --set workers=1
    torchrun --nproc-per-node 2 -m shifter.training jobs/recipes/digits.yaml --store runs
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.distributed as dist
import typer

from shifter import command_line
from shifter.command_line import Overrides, errors_in_a_line
from shifter.data import load
from shifter.errors import RecipeError, StoppedError
from shifter.lease import Lease
from shifter.recipe import Recipe
from shifter.run import Run
from shifter.store import Store
from shifter.training import world
from shifter.training.archive import Archive
from shifter.training.course import complete, is_trained, recording
from shifter.training.imp import iterative_magnitude_pruning
from shifter.training.telling import told


def train(recipe: Recipe, store: str, name: str | None, asked_to_stop: Callable[[], bool]) -> Run:
    """Trains what is left of a run, on the processes of torch.distributed or in this one.

    Worker 0 holds the run's lease meanwhile.

    Raises:
        RecipeError: if there are not as many processes as the recipe has workers.
        StoppedError: when ``asked_to_stop``, with the state saved.
    """
    if not recipe.min_workers <= world.size() <= recipe.max_workers:
        raise RecipeError(
            f"workers: the recipe has {recipe.max_workers}, but {world.size()} processes were started: start "
            f"as many with torchrun --nproc-per-node {recipe.max_workers}, "
            f"or give --set workers={world.size()}"
        )
    lines = _Lines()
    with ExitStack() as held:

        def begin() -> Run:
            opened = Store.open(store)
            run = Run.find(opened, recipe, name)
            lease = held.enter_context(Lease.hold(opened, run.lease_folder, lines.say))
            return Run.begin(opened.guarded(lease.guard), recipe, name)

        # One after another: worker 0 makes the run that the others are given.
        run = world.from_first(begin)
        if not world.from_first(lambda: is_trained(run)):
            iterative_magnitude_pruning(
                recipe,
                load(recipe.data, recipe.seed),
                Archive(run, recipe.digest()),
                recording(run, lines),
                device=_device(),
                asked_to_stop=asked_to_stop,
            )
        if world.rank() == 0:
            complete(run)
    return run


class _Lines:
    """Shows each event as a line on stderr."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    def __call__(self, event: Mapping[str, Any]) -> None:
        self.say(told(event))

    def say(self, text: str) -> None:
        print(f"{time.monotonic() - self._began:8.1f} s  {text}", file=sys.stderr, flush=True)


def _device() -> torch.device:
    """This process's accelerator, if there is one; else the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())


@contextmanager
def _processes() -> Iterator[None]:
    """Joins the processes that torchrun has started with this one, if it has."""
    if "WORLD_SIZE" not in os.environ:
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


class _Asked:
    """Which signal asked to stop; 0 for none."""

    number = 0

    def __call__(self) -> bool:
        return self.number != 0


@contextmanager
def _signals(asked: _Asked) -> Iterator[None]:
    """Sets ``asked`` at the first SIGTERM or SIGINT; the second does what it always did."""
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.getsignal(number) for number in numbers}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def ask(number: int, frame: object) -> None:
        asked.number = number
        restore()

    for number in numbers:
        signal.signal(number, ask)
    try:
        yield
    finally:
        restore()


def main(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A YAML file.", show_default=False)],
    store: Annotated[str, typer.Option(help="The folder for the run's artifacts.", metavar="URI")] = "runs",
    name: Annotated[
        str | None,
        typer.Option(help="The run's name; by default the recipe's name and hash.", show_default=False),
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Train a network and prune it round by round, without Ray.

    Started again after an interruption, the same command goes on from the state saved last.
    """
    asked = _Asked()
    with errors_in_a_line():
        try:
            with _processes(), _signals(asked):
                run = train(Recipe.load(recipe, overrides or []), store, name, asked)
        except StoppedError as error:
            print(f"{error}; the same command goes on from there", file=sys.stderr)
            raise typer.Exit(128 + asked.number) from None  # as shells have it
        if int(os.environ.get("RANK", "0")) == 0:
            print(f"{run.store.uri}/{run.name}: {run.rounds()} rounds are trained", flush=True)


def _run() -> None:
    if "WORLD_SIZE" not in os.environ:
        command_line.run(main)
        return
    try:
        command_line.run(main)
    except SystemExit as ended:
        # Without the interpreter's finalisation: a thread of gloo that lets go of its last tensor
        # meanwhile would abort the process (torch 2.15 with Python 3.11), its work being done.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(ended.code if isinstance(ended.code, int) else 0)


if __name__ == "__main__":
    _run()
