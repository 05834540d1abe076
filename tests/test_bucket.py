"""A store in a bucket: what differs from a folder. What does not is in ``test_store.py``."""

from __future__ import annotations

import io
import os
import pickle
import re
import subprocess
import sys
import threading
from dataclasses import replace

import numpy as np
import pytest

from shifter import bucket as bucket_module
from shifter import store as store_module
from shifter.errors import RunError, StoreError
from shifter.patience import Patience
from shifter.s3 import request
from shifter.sparse import CheckpointMeta, SparseCheckpoint, encode
from shifter.store import Store
from shifter.values import Mask

from .faults import HASTY
from .gone import check_that_it_is_gone
from .s3 import Server, everything

DATA = os.urandom(300_000)
BRIEF = Patience(limit_s=0.1, first_pause_s=0.02)
PART = 5 * 2**20
"""The least that S3 takes for a part."""


@pytest.fixture
def store(bucket: Server) -> Store:
    return Store.open(f"s3://{bucket.bucket()}/runs")


def checkpoint() -> tuple[dict[str, np.ndarray], bytes]:
    """Of ten tensors, 400 kB each."""
    random = np.random.default_rng(0)
    tensors = {f"layer{i}": random.normal(size=(100, 1000)).astype(np.float32) for i in range(10)}
    mask = Mask({name: np.ones(array.shape, bool) for name, array in tensors.items()})
    return tensors, encode(tensors, mask, CheckpointMeta(0, 1, 1.0, 0.5, 0.5, mask.digest()))


@pytest.mark.parametrize("name", ["layer0", "layer4", "layer9"])
def test_one_tensor_is_fetched_without_the_rest(bucket: Server, store: Store, name: str) -> None:
    tensors, data = checkpoint()
    store.write("run/rounds/round-00.arrow", data)
    bucket.play()
    with store.open_file("run/rounds/round-00.arrow") as file:
        assert (SparseCheckpoint.open(file).read(name) == tensors[name]).all()
    done = bucket.done()
    # The end of the file, where it says what is where, and as much before the tensor.
    assert tensors[name].nbytes <= done["bytes"] <= tensors[name].nbytes + 2 * bucket_module._TAIL
    assert done["GET"] <= 4


def test_what_is_small_is_read_by_one_request(bucket: Server, store: Store) -> None:
    store.replace("run/run.json", b"{}" * 1000)
    bucket.play()
    assert store.read("run/run.json") == b"{}" * 1000
    assert bucket.done() == {"GET": 1, "sound": 1, "bytes": 2000}


@pytest.mark.parametrize("size", [0, 1, 2**16 - 1, 2**16, 2**16 + 1, 2**17, 300_000])
def test_any_span_of_any_size_is_read(store: Store, size: int) -> None:
    store.write("a", DATA[:size])
    assert store.read("a") == DATA[:size]
    with store.open_file("a") as file:
        assert file.seek(0, io.SEEK_END) == size
        assert file.read(5) == b""
        for start in (0, size // 3, size - 2**16 - 7, size - 3):
            file.seek(max(0, start))
            assert file.read(100) == DATA[:size][max(0, start) :][:100]


def test_a_key_that_is_replaced_while_it_is_read_is_no_mixture(store: Store) -> None:
    store.replace("r/report.html", DATA)
    with store.open_file("r/report.html") as file:
        file.read(10)
        store.replace("r/report.html", DATA[::-1])
        with pytest.raises(StoreError, match=r"r/report.html .* was replaced while it was read"):
            file.read()
    assert store.read("r/report.html") == DATA[::-1]


def test_what_is_large_goes_in_parts_that_are_no_key_before_the_last(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bucket_module, "PART", PART)
    data = os.urandom(2 * PART + 1)
    seen: list[list[str]] = []
    guarded = store.guarded(lambda: seen.append(everything(store)))
    guarded.write("run/big", data)
    guarded.write("run/big", data)
    guarded.replace("run/resume/big", data)
    assert seen[0] == ["runs/run/big (in parts)"]
    assert store.read("run/big") == store.read("run/resume/big") == data
    with pytest.raises(StoreError, match="already in the store"):
        store.write("run/big", data[::-1])
    assert everything(store) == ["run/big", "run/resume/big"], "no part is left"


def test_parts_of_a_killed_writer_are_swept(store: Store) -> None:
    for key in ("runs/run/rounds/x", "runs/run2/x"):
        request("create_multipart_upload", Bucket=store.uri.split("/")[2], Key=key)
    assert store.list() == []
    lost = store.guarded(_refuse)
    with pytest.raises(RunError, match="taken over"):
        lost.sweep("run")
    store.sweep("run")
    assert everything(store) == ["runs/run2/x (in parts)"]


def _refuse() -> None:
    raise RunError("taken over")


@pytest.mark.parametrize("conditions", ["kept", "ignored", "refused"])
def test_a_key_is_not_overwritten_whatever_the_server_makes_of_conditions(
    bucket: Server, store: Store, conditions: str
) -> None:
    bucket.play(conditions=conditions)
    store.write("run/a", b"first")
    store.write("run/a", b"first")
    with pytest.raises(StoreError, match="run/a is already in the store"):
        store.write("run/a", b"second")
    assert store.read("run/a") == b"first"


@pytest.mark.parametrize(("share", "verbs"), [(0.2, None), (0.6, ["PUT", "POST"])])
@pytest.mark.parametrize("seed", range(2))
def test_a_fifth_of_all_requests_may_fail_and_more_of_those_that_write(
    bucket: Server,
    store: Store,
    seed: int,
    share: float,
    verbs: list[str] | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bucket_module, "PART", PART)
    big = os.urandom(2 * PART + 1)
    bucket.play(share=share, seed=seed, verbs=verbs)
    faulty = replace(store, patience=HASTY)
    faulty._probe()
    for index in range(15):
        faulty.write(f"run/{index}", DATA[index:])
        faulty.replace("run/run.json", b"%d" % index)
        with faulty.open_file(f"run/{index}") as file:
            file.seek(1000)
            assert file.read(9000) == DATA[index + 1000 : index + 10_000]
    faulty.write("run/big", big)
    faulty.delete("run/0")
    faulty.sweep("run")
    with pytest.raises(StoreError, match="run/1 is already in the store"):
        faulty.write("run/1", b"other")
    done = bucket.done()
    assert done.keys() >= {"busy", "dropped", "after", "cut", "slow"}
    bucket.play()
    store.sweep("run")  # giving up parts is tried once only
    assert everything(store) == sorted(["run/big", "run/run.json", *(f"run/{i}" for i in range(1, 15))])
    assert all(store.read(f"run/{i}") == DATA[i:] for i in range(1, 15))
    assert (store.read("run/big"), store.read("run/run.json")) == (big, b"14")


def test_many_keys_are_listed_page_by_page(bucket: Server, store: Store) -> None:
    name = store.uri.split("/")[2]
    for index in range(1003):
        request("put_object", Bucket=name, Key=f"runs/a/{index:04}", Body=b"")
    bucket.play()
    assert store.list("a/") == [f"a/{index:04}" for index in range(1003)]
    assert bucket.done()["GET"] == 2


def test_a_store_that_is_gone_is_one_clear_error(bucket: Server, store: Store) -> None:
    store.write("run/a", DATA)
    gone = replace(store, patience=BRIEF)
    with gone.open_file("run/a") as opened:
        bucket.play(gone=True)
        check_that_it_is_gone(gone, opened)
        bucket.play()
        opened.seek(0)
        assert opened.read() == DATA


@pytest.mark.parametrize(
    ("settings", "uri", "told"),
    [
        ({}, "s3://there-is-none/x", "there is no bucket there-is-none at http://127"),
        ({"AWS_ACCESS_KEY_ID": None}, "", "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"),
        ({"AWS_PROFILE": "nobody"}, "", r"profile \(nobody\) could not be found"),
        ({"AWS_ENDPOINT_URL_S3": "nonsense"}, "", "nonsense: AWS_ENDPOINT_URL_S3 should be a URL"),
        (
            {"AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9"},
            "",
            "no connection to http://127.0.0.1:9; .* set AWS_ENDPOINT_URL_S3",
        ),
        ({}, "", "answers 403 AccessDenied, access is denied .*: give credentials that may list the bucket"),
        ({}, "", "answers 400 AuthorizationHeaderMalformed, the bucket .* is in another region: set AWS_DEF"),
    ],
)
def test_what_is_wrong_is_told_with_its_remedy(
    bucket: Server,
    store: Store,
    settings: dict[str, str | None],
    uri: str,
    told: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SHIFTER_STORE_PATIENCE", "0.1")
    refused = re.match(r"answers (\d+)", told)
    bucket.play(status=int(refused[1]) if refused else 0)
    for name, value in settings.items():
        if value is None:
            monkeypatch.delenv(name)
        else:
            monkeypatch.setenv(name, value)
    with pytest.raises(StoreError, match=f"cannot be (reached|written to): .*{told}"):
        Store.open(uri or store.uri)


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:9", "http://no-such-host.invalid:9000"])
def test_a_mistyped_endpoint_is_not_waited_for(
    store: Store, endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "FIRST_CONTACT_S", 0.5)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", endpoint)
    assert store.patience.limit_s == 300
    with pytest.raises(StoreError, match=f"{store.uri} cannot be reached: no connection to {endpoint}; "):
        Store.open(store.uri)


def test_who_answers_that_it_is_busy_is_waited_for(
    bucket: Server, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "FIRST_CONTACT_S", 0.0)
    bucket.play(status=503)
    restored = threading.Timer(0.5, bucket.play)
    restored.start()
    Store.open(store.uri)
    restored.join()


def test_the_client_is_made_where_it_is_used(store: Store) -> None:
    """What travels is the address; a process has one client, whatever the number of stores."""
    store.write("a", b"1")
    script = (
        "import os, pickle, sys\n"
        "from shifter import s3\n"
        "store = pickle.loads(bytes.fromhex(sys.argv[1]))\n"
        "assert s3._client.cache_info().currsize == 0\n"
        "assert store.read('a') == type(store).at(store.uri).read('a') == b'1'\n"
        "assert s3._client.cache_info().currsize == 1\n"
    )
    subprocess.run([sys.executable, "-c", script, pickle.dumps(store).hex()], check=True)
