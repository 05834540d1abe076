from pathlib import Path

import numpy as np
import pytest

from shifter.errors import DataError
from shifter.switching.trace import SECOND, draw_requests, read_counts, read_trace, scale_to_peak


def written(folder: Path, text: str) -> Path:
    path = folder / "trace.csv"
    path.write_text(text)
    return path


def test_a_trace_is_read_and_seconds_that_are_not_named_had_none(tmp_path: Path) -> None:
    path = written(tmp_path, "second,requests\n3,7\n4,0\n7, 12\n")
    assert read_trace(path).tolist() == [7, 0, 0, 0, 12]
    assert read_trace(written(tmp_path, "second,requests\n")).size == 0


def test_counts_say_of_how_many_seconds_they_are(tmp_path: Path) -> None:
    for unit, width in (("second", 1), ("minute", 60)):
        counts, seconds = read_counts(written(tmp_path, f"{unit},requests\n3,7\n5,2\n"))
        assert (counts.tolist(), seconds) == ([7, 0, 2], width)
    for text, what in (("hour,requests\n", "hour"), ("minute,requests\n5,1\n5,1\n", "minute 5 comes after")):
        with pytest.raises(DataError, match=what):
            read_counts(written(tmp_path, text))


@pytest.mark.parametrize(
    ("text", "line", "what"),
    [
        ("", 1, "heading"),
        ("minute,requests\n1,2\n", 1, "minute"),
        ("second,requests\n0,1\n1\n", 3, "'1' is not two"),
        ("second,requests\n0,1\n1,2,3\n", 3, "1,2,3"),
        ("second,requests\n0,-1\n", 2, "0,-1"),
        ("second,requests\n0,1\n1,1.5\n", 3, "1,1.5"),
        ("second,requests\n0,nan\n", 2, "nan"),
        ("second,requests\n0,1\n\n2,1\n", 3, "''"),
        ("second,requests\n5,1\n5,1\n", 3, "second 5 comes after second 5"),
        ("second,requests\n5,1\n4,1\n", 3, "second 4 comes after second 5"),
        ("second,requests\n5,1\n99999999999,1\n", 3, "longer"),
        ("second,requests\n5,99999999999\n", 2, "more than"),
    ],
)
def test_a_bad_row_is_refused_with_its_line(tmp_path: Path, text: str, line: int, what: str) -> None:
    with pytest.raises(DataError, match=rf"trace.csv, line {line}: .*{what}"):
        read_trace(written(tmp_path, text))


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent.csv cannot be read: No such file"):
        read_trace(tmp_path / "absent.csv")
    (tmp_path / "bytes.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"bytes.csv is no text"):
        read_trace(tmp_path / "bytes.csv")


def test_scaling_sets_the_peak_and_keeps_the_shape() -> None:
    trace = np.random.default_rng(0).poisson(3.0, 20_000)
    scaled = scale_to_peak(trace, 94.0)
    assert scaled.max() == 94
    assert scaled.mean() / trace.mean() == pytest.approx(94 / trace.max(), rel=0.01)
    assert np.all(np.abs(scaled - trace * 94 / trace.max()) < 1)
    thin = scale_to_peak(trace, 2.0)
    # Rounded at random, a trace that is made smaller keeps its mean.
    assert thin.mean() / trace.mean() == pytest.approx(2 / trace.max(), rel=0.03)
    assert np.quantile(scale_to_peak(trace, 50.0, quantile=0.99), 0.99) == pytest.approx(50, abs=1)
    assert np.array_equal(scaled, scale_to_peak(trace, 94.0))


@pytest.mark.parametrize(("trace", "peak"), [([], 1.0), ([0, 0], 1.0), ([1, 2], 0.0), ([1], float("nan"))])
def test_what_cannot_be_scaled_is_refused(trace: list[int], peak: float) -> None:
    with pytest.raises(DataError):
        scale_to_peak(np.array(trace, np.int64), peak)


def test_requests_come_in_their_second_at_any_moment_of_it() -> None:
    trace = np.array([3, 0, 5000])
    arrivals, quantiles = draw_requests(trace, seed=4)
    assert np.bincount(arrivals // SECOND).tolist() == trace.tolist()
    assert np.all(np.diff(arrivals) >= 0)
    within = arrivals[3:] % SECOND / SECOND
    for values in (within, quantiles):
        assert np.quantile(values, [0.1, 0.5, 0.9]) == pytest.approx([0.1, 0.5, 0.9], abs=0.03)
    again, other = draw_requests(trace, seed=4)[0], draw_requests(trace, seed=5)[0]
    assert np.array_equal(arrivals, again)
    assert not np.array_equal(arrivals, other)
