"""A Ray cluster of several nodes on this machine, with room for one worker each."""

import shutil
import tempfile
import warnings
from contextlib import contextmanager

import pytest
import ray

ROOM = {"num_cpus": 1}
ITS_WARNINGS = [
    pytest.mark.filterwarnings(r"ignore::DeprecationWarning:ray\."),
    pytest.mark.filterwarnings("ignore::FutureWarning:ray"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@contextmanager
def cluster(monkeypatch):
    """One node, to which this process is connected; ``add_node(**ROOM)`` adds another."""
    folder = tempfile.mkdtemp(prefix="shifter-", dir="/tmp")  # short: sockets lie in it
    monkeypatch.setenv("RAY_TMPDIR", folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from ray.cluster_utils import Cluster

        nodes = Cluster(initialize_head=True, head_node_args={**ROOM, "include_dashboard": False})
        ray.init(address=nodes.address, log_to_driver=False, logging_level="ERROR")
    try:
        yield nodes
    finally:
        ray.shutdown()
        nodes.shutdown()
        shutil.rmtree(folder, ignore_errors=True)
