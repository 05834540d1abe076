"""The record of a run says how each start of training was, and whether that changes the bits."""

import pytest

from shifter.run import Run
from shifter.store import Store
from shifter.training.course import recording

ATTEMPT = {"event": "attempt", "workers": 2, "device": "cpu", "threads": 1, "round": 0, "iteration": 0}


@pytest.fixture
def run(recipe, tmp_path):
    return Run.begin(Store.open(str(tmp_path)), recipe)


def test_starts_are_recorded_and_other_events_passed_on(run):
    seen = []
    record = recording(run, seen.append)
    record(ATTEMPT)
    record({"event": "epoch"})
    record(ATTEMPT | {"round": 1, "iteration": 7})
    assert seen == [{"event": "epoch"}]
    assert [(one["workers"], one["round"], one["iteration"]) for one in run.attempts] == [
        (2, 0, 0),
        (2, 1, 7),
    ]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"workers": 1}, "1 instead of 2 (workers)"),
        ({"device": "cuda"}, "cuda instead of cpu (device)"),
        ({"threads": 8, "workers": 4}, "4 instead of 2 (workers), 8 instead of 1 (threads)"),
    ],
)
def test_a_start_that_changes_the_bits_is_told_of(run, change, told):
    notes = []
    record = recording(run, notes.append)
    record(ATTEMPT)
    record(ATTEMPT | change | {"round": 1})
    (note,) = notes
    assert (note["event"], note["round"]) == ("note", 1)
    assert told in note["text"]
    assert ("batch norm sees other parts" in note["text"]) == ("workers" in change)
