"""A run: the names and places of its artifacts, its state, and where it came from.

Where a run's artifacts lie. Layout: ``docs/design.md``, or :class:`Run`'s properties.
"""

from __future__ import annotations

import json
import platform
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from shifter.errors import RunError, TrainingError
from shifter.node import this_node
from shifter.recipe import Recipe, differences, identity
from shifter.store import Store
from shifter.values import CompressionRatio

if TYPE_CHECKING:
    from shifter.sparse import CheckpointMeta

State = Literal["training", "reducing", "packing", "finished", "failed"]

_FORMAT = 1
_VERSIONED = ("shifter", "numpy", "onnx", "onnxruntime", "pyarrow", "ray", "torch")


@dataclass(frozen=True)
class Run:
    """One recipe being carried out in a store. Made by :meth:`find`, :meth:`begin` or :meth:`attach`.

    Holds no state of its own beyond its address: what is finished is what the store holds.
    """

    store: Store
    name: str

    @classmethod
    def find(cls, store: Store, recipe: Recipe, name: str | None = None) -> Run:
        """The run of ``recipe``, whether it has begun or not. Writes nothing.

        Args:
            name: instead of the recipe's own (its name and hash).

        Raises:
            RunError: if ``name`` cannot name a run, belongs to another recipe (every difference is
                shown), or to a folder that is no run.
        """
        run = cls(store, recipe.run_name() if name is None else name)
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", run.name):
            raise RunError(f"{run.name!r} cannot name a run: letters, digits, '.', '_' and '-' only")
        if run.has_begun:
            run._check_recipe(recipe)
        elif any(not key.startswith(f"{run.lease_folder}/") for key in store.list(f"{run.name}/")):
            raise RunError(
                f"{run.name} in the store {store.uri} is a folder with files but no run.json: "
                "give another --name or --store"
            )
        return run

    @classmethod
    def begin(cls, store: Store, recipe: Recipe, name: str | None = None) -> Run:
        """Starts the run of ``recipe``, or goes on with it if the store has it already.

        What killed writers left is removed, so nobody else may be writing: where that is not
        certain, hold the lease (``shifter.lease``) first.

        Raises:
            RunError: as :meth:`find`.
        """
        run = cls.find(store, recipe, name)
        if run.has_begun:
            if not run.is_finished:
                run.sweep()
                run._write(resumed=[*run.record["resumed"], _now()])
            return run
        run._write(
            format=_FORMAT,
            recipe=recipe.resolved(),
            digest=recipe.digest(),
            provenance=provenance(recipe.seed),
            started=_now(),
            resumed=[],
            ended=None,
            state="training",
            failure=None,
        )
        return run

    def sweep(self) -> None:
        """Removes what killed writers left; not in the lease's folder, where rivals may be writing."""
        self.store.sweep(self.name, spare=self.lease_folder)

    @classmethod
    def attach(cls, uri: str, name: str) -> Run:
        """A run that exists, from inside any process that reaches the store.

        Raises:
            RunError: if the store has no such run, or one written by another version.
        """
        run = cls(Store.at(uri), name)
        if not run.has_begun:
            raise RunError(f"there is no run {name!r} in the store {uri}")
        run._check_format()
        return run

    # Keys.

    @property
    def record_key(self) -> str:
        return f"{self.name}/run.json"

    @property
    def lease_folder(self) -> str:
        """Where ``shifter.lease`` says who drives the run."""
        return f"{self.name}/lease"

    @property
    def architecture_key(self) -> str:
        return f"{self.name}/architecture.onnx"

    def checkpoint_key(self, round: int) -> str:
        """The sparse checkpoint of a round, counted from the dense round 0."""
        return f"{self.name}/rounds/round-{round:02d}.arrow"

    def resume_key(self, name: str) -> str:
        """State that only an unfinished run needs."""
        return f"{self.name}/resume/{name}"

    def variant_key(self, variant: str, file: str) -> str:
        return f"{self.name}/variants/{variant}/{file}"

    def portfolio_key(self, digest: str) -> str:
        return f"{self.name}/portfolio/{digest}.zip"

    @property
    def portfolio_json(self) -> str:
        """Names the current portfolio and the previous one."""
        return f"{self.name}/portfolio.json"

    @property
    def report_key(self) -> str:
        return f"{self.name}/report.html"

    # State.

    @property
    def has_begun(self) -> bool:
        """Whether the store has it at all."""
        return self.store.exists(self.record_key)

    @property
    def record(self) -> dict[str, Any]:
        """run.json: recipe, digest, provenance, times, state."""
        record: dict[str, Any] = json.loads(self.store.read(self.record_key))
        return record

    @property
    def recipe(self) -> Recipe:
        """The recipe that this run carries out."""
        return Recipe.model_validate(self.record["recipe"])

    @property
    def state(self) -> State:
        state = self.record["state"]
        assert state in get_args(State), state
        return state  # type: ignore[no-any-return]

    @property
    def is_finished(self) -> bool:
        return self.has_begun and self.state == "finished"

    def advance(self, state: State, failure: str | None = None) -> None:
        """Records that the run has come to ``state``; ``failure`` says why, when it failed."""
        assert state in get_args(State), state
        assert self.state != "finished", "a finished run stays finished"
        assert (state == "failed") == (failure is not None), "a failure, and only that, has a reason"
        ended = _now() if state in ("finished", "failed") else None
        self._write(state=state, failure=failure, ended=ended)

    def finished_rounds(self) -> int:
        """How many rounds are done: 0, 1, … up to the first whose checkpoint is not there."""
        done = 0
        while self.store.exists(self.checkpoint_key(done)):
            done += 1
        return done

    def checkpoint_meta(self, round: int) -> CheckpointMeta:
        """What a finished round's checkpoint says of itself; reads its header only.

        Raises:
            CheckpointError: if it is damaged.
        """
        from shifter.sparse import SparseCheckpoint  # an extra, which most of a run does without

        with self.store.open_file(self.checkpoint_key(round)) as file:
            return SparseCheckpoint.open(file).meta

    def rounds(self) -> int:
        """How many rounds are to become variants, once training is over: 0, 1, … up to it.

        The recipe's, or fewer where accuracy fell below ``pruning.accuracy_floor``: the round that
        did so has a checkpoint, which says how far it fell, but is none of them.

        Raises:
            TrainingError: if the dense network did so.
        """
        recipe, finished = self.recipe, self.finished_rounds()
        floor = recipe.pruning.accuracy_floor
        if floor is None or finished == 0:
            return recipe.rounds
        accuracy = self.checkpoint_meta(finished - 1).validation_accuracy
        if accuracy >= floor:
            return recipe.rounds
        if finished == 1:
            raise TrainingError(
                f"the dense network of {self.name} has a validation accuracy of {accuracy:.2%}, below the "
                f"floor of {floor:.2%}: train longer, or lower pruning.accuracy_floor"
            )
        return finished - 1

    def variant_names(self) -> list[str]:
        """Of the variants of every round, the dense one (``1x``) first. Raises as :meth:`rounds`."""
        return [str(CompressionRatio(ratio)) for ratio in self.recipe.ratio_of_round[: self.rounds()]]

    @property
    def attempts(self) -> list[dict[str, Any]]:
        """Each start of training, in order: when, on what, from where."""
        attempts: list[dict[str, Any]] = self.record.get("attempts", [])
        return attempts

    def note_attempt(self, **facts: Any) -> None:
        """Records that training began or went on: with how many workers, from where."""
        self._write(attempts=[*self.attempts, {"at": _now(), **facts}])

    def note_early_end(self) -> None:
        """Records which round fell below the accuracy floor, if one did."""
        rounds = self.rounds()
        if rounds < self.recipe.rounds:
            meta = self.checkpoint_meta(rounds)
            self._write(
                ended_early={
                    "round": meta.round,
                    "ratio": meta.ratio,
                    "validation_accuracy": meta.validation_accuracy,
                    "accuracy_floor": self.recipe.pruning.accuracy_floor,
                }
            )

    def _write(self, **changes: Any) -> None:
        old = self.record if self.has_begun else {}
        data = json.dumps({**old, **changes}, indent=2, ensure_ascii=False)
        self.store.replace(self.record_key, data.encode())

    def _check_format(self) -> None:
        found = self.record.get("format")
        if found != _FORMAT:
            raise RunError(
                f"the run {self.name} was written by another version (format {found}, not {_FORMAT}): "
                "give another --name"
            )

    def _check_recipe(self, recipe: Recipe) -> None:
        self._check_format()
        found = list(differences(identity(self.record["recipe"]), identity(recipe.resolved())))
        if found:
            lines = [f"{path}: the run has {old}, the recipe says {new}" for path, old, new in found]
            raise RunError(
                "\n  ".join(
                    [
                        f"the run {self.name} in the store {self.store.uri} has another recipe "
                        "(give another --name, or none):",
                        *lines,
                    ]
                )
            )


def provenance(seed: int) -> dict[str, Any]:
    """Where results come from: code, versions, machine. What cannot be known is None."""
    return {
        "git_commit": _git_commit(),
        "versions": {"python": platform.python_version(), **_versions()},
        "seed": seed,
        "device": str(this_node()),
    }


def flat(provenance: Mapping[str, Any]) -> dict[str, str]:
    """The same as text, one level deep (``version.torch``), for a package's manifest."""
    texts = {k: str(v) for k, v in provenance.items() if k != "versions" and v is not None}
    return texts | {f"version.{k}": str(v) for k, v in provenance["versions"].items()}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _versions() -> dict[str, str]:
    found = {}
    for package in _VERSIONED:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue  # an extra that is not installed made nothing of this run
    return found


def _git_commit() -> str | None:
    """The commit of this code, ``-dirty`` if changed; None outside a checkout of it."""
    here = Path(__file__).resolve()

    def git(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["git", "-C", str(here.parent), *arguments], capture_output=True, text=True, check=False
        )

    try:
        # An installed copy inside someone else's repository must not claim that one's commit.
        if git("ls-files", "--error-unmatch", here.name).returncode != 0:
            return None
        described = git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    except FileNotFoundError:
        return None  # no git here
    return described.stdout.strip() or None
