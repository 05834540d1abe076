from dataclasses import replace

import pytest

from shifter.switching.ensemble import alternating_times, voting
from shifter.switching.policies import Fixed
from shifter.switching.simulator import simulate
from shifter.values import Latency, Profile


def test_all_variants_compute_every_request(five: dict[str, Profile]) -> None:
    profiles, times = voting(five, alternating_times(five))
    (name,) = profiles
    assert times[name].mean == pytest.approx(0.031)
    assert profiles[name].memory_bytes == sum(one.memory_bytes for one in five.values())
    assert profiles[name].test_accuracy == five["v4"].test_accuracy
    assert voting(five, alternating_times(five), accuracy=0.99)[0][name].test_accuracy == 0.99
    figures = simulate(profiles, [5] * 20, Fixed(name), objective=0.2, services=times)
    assert figures.effective_accuracy == pytest.approx(five["v4"].test_accuracy)
    assert figures.latency_p50 == pytest.approx(0.031, rel=0.2)
    # 32 requests a second are all that it computes.
    assert simulate(profiles, [50] * 20, Fixed(name), objective=0.2, services=times).slo_attainment < 0.2


def test_a_call_after_anothers_takes_its_alternating_time(five: dict[str, Profile]) -> None:
    slow = Latency(5.0, 5.0, 5.0, 5.0, 10)
    some = {**five, "v0": replace(five["v0"], alternating_latency=slow)}
    times = alternating_times(some)
    assert (times["v0"].mean, times["v1"].mean) == (0.005, 0.002)
