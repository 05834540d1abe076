"""What the rounds leave behind: kept in memory for the next round, written to the run by worker 0."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from types import TracebackType

from shifter.errors import CheckpointError, RunError, StoppedError, StoreError
from shifter.run import Run
from shifter.sparse import CheckpointMeta, SparseCheckpoint, encode
from shifter.training import world
from shifter.training.progress import Progress, pack, unpack
from shifter.training.round import Round, Trained
from shifter.training.writer import Writer
from shifter.values import Mask, Step, Tensors

_REWIND = "rewind.safetensors"
_PROGRESS = "round.safetensors"


class Archive:
    """The rounds of one run, as one worker sees them. Made by every worker together.

    Worker 0 writes, in order and while training goes on; leaving the context waits for that. So a
    mid-round state is never there before the rounds and the rewind point that it follows from.

    Args:
        recipe: the recipe's digest; a mid-round state of another one is not used.

    Attributes:
        finished: how many rounds the run had at the beginning. Those are read from the store; later
            ones from memory, since worker 0 may still be writing them.
    """

    def __init__(self, run: Run, recipe: str) -> None:
        self.finished = world.from_first(run.finished_rounds)
        self._run = run
        self._recipe = recipe
        self._writer = Writer()
        self._rewind_point: Tensors | None = None
        self._last: tuple[int, Tensors, Mask] | None = None

    def __enter__(self) -> Archive:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Who was asked to stop has something to save.
        stopped = isinstance(error, StoppedError)
        self._writer.__exit__(*(None, None, None) if stopped else (kind, error, trace))

    def write_architecture(self, graph: bytes) -> None:
        """Once per run: one that was stopped in its first round has it already."""
        if not self._run.store.exists(self._run.architecture_key):
            self._run.store.write(self._run.architecture_key, graph)

    def keep_rewind_point(self, tensors: Tensors) -> None:
        """The weights that every later round starts from."""
        self._rewind_point = tensors
        key = self._run.resume_key(_REWIND)
        if world.rank() == 0:
            self._writer.submit(lambda: self._run.store.replace(key, pack(tensors, {})))

    def rewind_point(self) -> Tensors:
        """Raises RunError if it has to be read and is not there, or is damaged."""
        if self._rewind_point is None:
            key = self._run.resume_key(_REWIND)
            if not self._run.store.exists(key):
                raise RunError(
                    f"{self._run.name} cannot go on: its weights at the rewind point, {key}, are gone; "
                    "start again under another --name"
                )
            try:
                self._rewind_point, _ = unpack(self._run.store.read(key))
            except CheckpointError as error:
                raise RunError(
                    f"{self._run.name} cannot go on: {key} cannot be used, {error}; "
                    "start again under another --name"
                ) from error
        return self._rewind_point

    def keep_progress(self, progress: Progress) -> None:
        """The state of a round in the middle, in the place of the one before. For worker 0."""
        key = self._run.resume_key(_PROGRESS)
        self._writer.submit(lambda: self._run.store.replace(key, progress.to_bytes(self._recipe)))

    def progress(self, round: int) -> tuple[Progress | None, str | None]:
        """Where ``round`` was stopped; None to train it from its start. The same on every worker.

        Returns:
            Also why a state that is there cannot be used, if so.
        """
        return world.from_first(lambda: self._read_progress(round))

    def _read_progress(self, round: int) -> tuple[Progress | None, str | None]:
        key = self._run.resume_key(_PROGRESS)
        if not self._run.store.exists(key):
            return None, None
        try:
            progress = Progress.from_bytes(self._run.store.read(key), self._recipe)
        except CheckpointError as error:
            return None, f"the mid-round state {key} cannot be used, {error}"
        # An earlier round's is only not deleted yet.
        return (progress if progress.round == round else None), None

    def keep_round(self, round: Round, trained: Trained, end: Step, on_written: Callable[[], None]) -> None:
        """A finished round. Its checkpoint is what makes it finished.

        Args:
            on_written: called by worker 0, in another thread, when the checkpoint is there.
        """
        self._last = (round.index, trained.tensors, round.mask)
        meta = CheckpointMeta(
            round=round.index,
            step=end.iteration - round.first.iteration,
            ratio=round.ratio.value,
            validation_accuracy=trained.validation_accuracy,
            test_accuracy=trained.test_accuracy,
            mask_digest=round.mask.digest(),
        )

        def write() -> None:
            data = encode(trained.tensors, round.mask, meta)
            self._write_verified(self._run.checkpoint_key(round.index), data)
            on_written()

        if world.rank() == 0:
            self._writer.submit(write)

    def _write_verified(self, key: str, data: bytes) -> None:
        store = self._run.store
        # A worker that was taken for lost may have come to its end after all.
        there = store.exists(key)
        if not there:
            store.write(key, data)
        wanted, found = (hashlib.sha256(d).hexdigest() for d in (data, store.read(key)))
        if wanted == found:
            return
        if there:
            raise StoreError(
                f"{key} in the store {store.uri} was written by another process meanwhile, with another "
                "result: see that no other one trains this run, then give the same command again"
            )
        store.delete(key)  # for the next attempt
        raise StoreError(
            f"{key} in the store {store.uri} does not read as it was written "
            f"(sha256 {found}, not {wanted}): check that storage, then give the same command again"
        )

    def round(self, index: int) -> tuple[Tensors, Mask]:
        """The trained tensors and the mask of a finished round.

        Raises:
            CheckpointError: if its checkpoint is damaged.
        """
        if self._last is None or self._last[0] != index:
            assert index < self.finished, f"round {index} is neither in memory nor finished"
            with self._run.store.open_file(self._run.checkpoint_key(index)) as file:
                checkpoint = SparseCheckpoint.open(file)
                self._last = index, checkpoint.tensors(), checkpoint.mask()
        return self._last[1:]

    def validation_accuracy(self, index: int) -> float:
        """Of a round that was finished at the beginning. Raises CheckpointError likewise."""
        return self._run.checkpoint_meta(index).validation_accuracy


def forget_unfinished(run: Run) -> None:
    """Deletes what only an unfinished run needs."""
    for key in (_REWIND, _PROGRESS):
        run.store.delete(run.resume_key(key))
