"""What a store answers whose storage does not come back, wherever it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import BinaryIO

import pytest

from shifter.errors import StoreError
from shifter.store import Store


def check_that_it_is_gone(store: Store, opened: BinaryIO) -> None:
    """Every verb of a store whose storage does not come back ends in one error with its remedy.

    ``opened``: its key ``run/a``.
    """
    acts: list[tuple[str, Callable[[], object]]] = [
        ("write run/b", lambda: store.write("run/b", b"")),
        ("write run/run.json", lambda: store.replace("run/run.json", b"")),
        ("read run/a", lambda: store.read("run/a")),
        ("read run/a", opened.read),
        ("look up run/a", lambda: store.exists("run/a")),
        ("list run", lambda: store.list("run/")),
        ("delete run/a", lambda: store.delete("run/a")),
    ]
    for verb, act in acts:
        with pytest.raises(StoreError, match=rf"cannot {verb} in the store {store.uri}: .*; it was") as told:
            act()
        assert "when the storage is back, the same command goes on" in str(told.value)
    with pytest.raises(StoreError, match="cannot be written to"):
        store._probe()
