"""What the rounds leave behind: kept in memory for the next round, written to the run by worker 0."""

from __future__ import annotations

import safetensors
import safetensors.numpy

from shifter.errors import RunError
from shifter.run import Run
from shifter.sparse import CheckpointMeta, SparseCheckpoint, encode
from shifter.training import world
from shifter.training.loop import Round, Trained
from shifter.values import Mask, Step, Tensors

_REWIND = "rewind.safetensors"


class Archive:
    """The rounds of one run, as one worker sees them.

    Args:
        finished: how many rounds the run has already; the same on every worker. Those are read from
            the store; later ones from memory, since another worker may still be writing them.
    """

    def __init__(self, run: Run, finished: int) -> None:
        self.finished = finished
        self._run = run
        self._rewind_point: Tensors | None = None
        self._last: tuple[int, Tensors, Mask] | None = None

    def write_architecture(self, graph: bytes) -> None:
        """Once per run: one that was stopped in its first round has it already."""
        if not self._run.store.exists(self._run.architecture_key):
            self._run.store.write(self._run.architecture_key, graph)

    def keep_rewind_point(self, tensors: Tensors) -> None:
        """The weights that every later round starts from."""
        self._rewind_point = tensors
        if world.rank() == 0:
            data = safetensors.numpy.save(dict(tensors))
            self._run.store.replace(self._run.resume_key(_REWIND), data)

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
                self._rewind_point = safetensors.numpy.load(self._run.store.read(key))
            except safetensors.SafetensorError as error:
                raise RunError(
                    f"{self._run.name} cannot go on: {key} is damaged ({error}); "
                    "start again under another --name"
                ) from error
        return self._rewind_point

    def keep_round(self, round: Round, trained: Trained, end: Step) -> None:
        """A finished round. Its checkpoint is what makes it finished."""
        self._last = (round.index, trained.tensors, round.mask)
        if world.rank() == 0:
            meta = CheckpointMeta(
                round=round.index,
                step=end.iteration - round.first.iteration,
                ratio=round.ratio.value,
                validation_accuracy=trained.validation_accuracy,
                test_accuracy=trained.test_accuracy,
                mask_digest=round.mask.digest(),
            )
            data = encode(trained.tensors, round.mask, meta)
            self._run.store.write(self._run.checkpoint_key(round.index), data)

    def round(self, index: int) -> tuple[Tensors, Mask]:
        """The trained tensors and the mask of a finished round.

        Raises:
            CheckpointError: if its checkpoint is damaged.
        """
        if self._last is None or self._last[0] != index:
            assert index < self.finished, f"round {index} is neither in memory nor finished"
            with self._run.store.open_file(self._run.checkpoint_key(index)) as file:
                checkpoint = SparseCheckpoint.open(file)
                return checkpoint.tensors(), checkpoint.mask()
        return self._last[1], self._last[2]

    def forget_rewind_point(self) -> None:
        """Deletes what only an unfinished run needs."""
        self._run.store.delete(self._run.resume_key(_REWIND))
