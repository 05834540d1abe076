import random
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shifter.errors import PackageError
from shifter.portfolio import deflating

BOTH = [pytest.param(True, id="libdeflate"), pytest.param(False, id="zlib")]


@pytest.fixture(params=BOTH)
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    assert deflating.libdeflate is not None, "the deflate package belongs to the development set-up"
    if not request.param:
        monkeypatch.setattr(deflating, "libdeflate", None)


@given(st.binary(max_size=3000))
def test_each_library_reads_what_the_other_wrote(content: bytes) -> None:
    both = deflating.libdeflate
    assert both is not None
    written = deflating.deflate(content)
    try:
        deflating.libdeflate = None
        assert bytes(deflating.inflate(written, len(content))) == content
        written = deflating.deflate(content)
    finally:
        deflating.libdeflate = both
    assert bytes(deflating.inflate(written, len(content))) == content


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("size", [0, 1, 999, 1001, 5000])
def test_a_stream_that_holds_another_size_is_refused(size: int) -> None:
    with pytest.raises(PackageError, match=f"hold the {size} "):
        deflating.inflate(deflating.deflate(bytes(range(250)) * 4), size)


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("stream", [b"", b"\x06", b"\xff" * 40, deflating.deflate(b"abc" * 400)[:-3]])
def test_a_broken_stream_is_refused(stream: bytes) -> None:
    with pytest.raises(PackageError):
        deflating.inflate(stream, 1200)


@pytest.mark.usefixtures("library")
def test_a_bomb_is_refused_before_memory_is_taken() -> None:
    bomb = zlib.compress(bytes(10**6), 9, wbits=-15)
    with pytest.raises(PackageError):
        deflating.inflate(bomb, 1000)
    with pytest.raises(PackageError, match="1032-fold at most"):
        deflating.inflate(bomb, 10**15)


@given(st.binary(min_size=1, max_size=200), st.integers(0, 2000), st.integers(0, 140_000))
def test_noise_is_stored_and_comes_back(tail: bytes, repeated: int, noise: int) -> None:
    content = random.Random(noise).randbytes(noise) + tail * repeated
    written = deflating.deflate(content, noise)
    assert zlib.decompress(written, -15) == content
    assert bytes(deflating.inflate(written, len(content))) == content
    assert len(written) <= noise + 5 * (noise // 65535 + 1) + len(deflating.deflate(tail * repeated))


@pytest.mark.usefixtures("library")
def test_noise_that_is_none_is_deflated() -> None:
    content = bytes(50_000) + b"abc" * 400
    assert deflating.deflate(content, 50_000) == deflating.deflate(content)
    assert deflating.quick_size(content, 50_000) < 1000
