"""The Ray cluster that a job runs on: the one it was sent to, or one of its own."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import ray
import ray._private.utils

import jobs
import serve_app
import shifter
from jobs.cli import terminated_later
from shifter.errors import ShifterError
from shifter.process import Process

ROOM_FOR_SOCKETS = 32
"""Characters that a temporary folder's path may have: Ray adds 66, and a Unix socket's ends at 107."""


@contextmanager
def cluster(cpus: int, say: Callable[[str], None]) -> Iterator[None]:
    """Connects to Ray, and disconnects at the end, whatever happens.

    Within another such context its cluster is used, and left as it is.

    Inside ``ray job submit``, and wherever RAY_ADDRESS is set, that is the cluster meant. Otherwise
    a cluster is started here, apart from any other on this machine, and ended again.

    Args:
        cpus: what the job cannot do without. A cluster of its own pretends to have them.
        say: told what is being done, and then which cluster it is.

    Raises:
        ShifterError: if the cluster cannot be reached.
    """
    address = os.environ.get("RAY_ADDRESS")
    if ray.is_initialized():
        say("on the same Ray cluster")
        yield
    elif address:
        say(f"connecting to the Ray cluster at {address} …")
        yield from _remote(address, cpus, say)
    else:
        say("starting Ray …")
        yield from _local(cpus, say)


def _remote(address: str, cpus: int, say: Callable[[str], None]) -> Iterator[None]:
    # A submitted job has been given its code; elsewhere the cluster gets the very code that runs here.
    submitted = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
    code = [str(Path(str(package.__file__)).parent) for package in (shifter, jobs, serve_app)]
    try:
        with _starting_ray():
            ray.init(
                address=address,
                runtime_env=None if submitted else {"py_modules": code, "env_vars": _settings()},
                # What workers have to say comes as events; the rest is in Ray's own logs.
                log_to_driver=False,
                logging_level=logging.WARNING,
            )
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ShifterError(f"the Ray cluster at RAY_ADDRESS={address} cannot be used: {error}") from error
    try:
        resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        has = int(resources.get("CPU", 0))
        waits = f", which has to grow to {cpus} before training begins" if has < cpus else ""
        say(f"on the Ray cluster at {address} with {has} CPUs{waits}")
        yield
    finally:
        ray.shutdown()


def _settings() -> dict[str, str]:
    """Our own environment variables, which hold for the workers as well."""
    return {name: value for name, value in os.environ.items() if name.startswith("SHIFTER_")}


def _local(cpus: int, say: Callable[[str], None]) -> Iterator[None]:
    folder = _temporary_folder()
    # Not init's own parameter for it: Ray's helpers would still look for "the" cluster in /tmp/ray,
    # find another one there, and take this one's training for dead.
    changed = {"RAY_TMPDIR": str(folder), "RAY_USAGE_STATS_ENABLED": "0"}
    before = {name: os.environ.get(name) for name in changed}
    with _watchdog(folder) as dismiss:
        os.environ.update(changed)
        # What this process itself keeps for a while goes with the folder, too.
        usual, tempfile.tempdir = tempfile.tempdir, str(folder)
        try:
            cores = max(os.cpu_count() or 1, cpus)
            with _starting_ray():
                ray.init(
                    address="local",
                    num_cpus=cores,
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                )
            say(f"on a local Ray cluster with {cores} CPUs")
            yield
        finally:
            ray.shutdown()
            tempfile.tempdir = usual
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name)
                else:
                    os.environ[name] = value
            shutil.rmtree(folder, ignore_errors=True)
            dismiss()


@contextmanager
def _watchdog(folder: Path) -> Iterator[Callable[[], object]]:
    """A process that ends the cluster if this one does not, being killed or interrupted while it does.

    Yields: what tells it that there is nothing left to do.
    """
    # By path: this process may have found its modules in ways that another would not.
    command = [sys.executable, "-I", str(Path(__file__).with_name("_watchdog.py")), str(folder)]
    watchdog = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
    assert watchdog.stdin is not None
    try:
        yield partial(watchdog.stdin.write, b"goodbye")
    finally:
        with suppress(BrokenPipeError):
            watchdog.stdin.close()
        watchdog.wait()


def _temporary_folder() -> Path:
    """A new one, named after nobody else; those of drivers that were killed are removed."""
    usual = tempfile.gettempdir()
    within = usual if len(usual) <= ROOM_FOR_SOCKETS else "/tmp"
    for note in Path(within).glob("shifter-*/owner.json"):
        with suppress(OSError, ValueError, TypeError):  # another user's, or another version's
            if Process.from_json(json.loads(note.read_bytes())).is_known_dead():
                shutil.rmtree(note.parent, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix="shifter-", dir=within))
    (folder / "owner.json").write_text(json.dumps(Process.this().to_json()))
    return folder


@contextmanager
def _starting_ray() -> Iterator[None]:
    """For ``ray.init``: what SIGTERM did before, it goes on doing, afterwards.

    Ray's own handler would end the process with status 15, from wherever it is.
    """
    utils: Any = ray._private.utils
    ours = utils.set_sigterm_handler
    with terminated_later():
        utils.set_sigterm_handler = lambda handler: None
        try:
            yield
        finally:
            utils.set_sigterm_handler = ours
