from pathlib import Path

import pytest

from shifter.user_cache import cache_folder


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SHIFTER_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder("/a/b") == Path("/a/b")
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("SHIFTER_CACHE")
    assert cache_folder() == tmp_path / ".cache/shifter"
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache_folder() == Path("/xdg/shifter")
