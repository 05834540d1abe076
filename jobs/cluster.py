"""The Ray cluster that a job runs on: the one it was sent to, or one of its own."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import ray

import jobs
import serve_app
import shifter
from shifter.errors import ShifterError

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
        ray.init(
            address=address,
            runtime_env=None if submitted else {"py_modules": code},
            logging_level=logging.WARNING,
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ShifterError(f"the Ray cluster at RAY_ADDRESS={address} cannot be used: {error}") from error
    try:
        has = int(ray.cluster_resources().get("CPU", 0))
        waits = f", which has to grow to {cpus} before training begins" if has < cpus else ""
        say(f"on the Ray cluster at {address} with {has} CPUs{waits}")
        yield
    finally:
        ray.shutdown()


def _local(cpus: int, say: Callable[[str], None]) -> Iterator[None]:
    usual = tempfile.gettempdir()
    folder = tempfile.mkdtemp(prefix="shifter-", dir=usual if len(usual) <= ROOM_FOR_SOCKETS else "/tmp")
    # Not init's own parameter for it: Ray's helpers would still look for "the" cluster in /tmp/ray,
    # find another one there, and take this one's training for dead.
    changed = {"RAY_TMPDIR": folder, "RAY_USAGE_STATS_ENABLED": "0"}
    before = {name: os.environ.get(name) for name in changed}
    os.environ.update(changed)
    try:
        cores = max(os.cpu_count() or 1, cpus)
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
        for name, value in before.items():
            if value is None:
                os.environ.pop(name)
            else:
                os.environ[name] = value
        shutil.rmtree(folder, ignore_errors=True)
