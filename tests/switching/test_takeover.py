"""Another portfolio is taken over while requests are answered: none is lost, none is mixed."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import onnx
import pytest

from shifter.errors import EngineError, PackageError
from shifter.portfolio import Portfolio, pack
from shifter.switching.engine import OnnxEngine
from shifter.switching.host import Host
from shifter.switching.initialise import initialise
from shifter.switching.policies import Fixed, Slo
from shifter.switching.switcher import Observation, Service, Switcher
from shifter.values import InputSpec, Variant

from .conftest import TENSOR_BYTES, _network, of_tensors
from .test_host import IMAGES, Gated, Tour, same, submit

Making = Callable[..., Portfolio]
PIXELS = np.random.default_rng(4).integers(0, 17, (3, 1, 6, 6)).astype(np.float32)
SPEC = InputSpec(1, 6, 6, 16.0, (0.3,), (0.5,), ("zero", "one", "two"))


@pytest.fixture
def make(variants: dict[str, Variant]) -> Making:
    def made(seed: int, *names: str, spec: InputSpec = SPEC) -> Portfolio:
        """Other weights under the same names."""
        some = []
        for index, name in enumerate(names or ("v0", "v1", "v2")):
            graph, tensors = _network(4, 100 * seed + index)
            profile = of_tensors(variants["v0"].profile, tensors)
            some.append(replace(variants["v0"], name=name, graph=graph, tensors=tensors, profile=profile))
        return Portfolio.open(pack(some, spec, model="tiny", provenance={"seed": str(seed)}))

    return made


def logits(portfolio: Portfolio, name: str, images: np.ndarray) -> np.ndarray:
    variant = portfolio.inflate(name)
    return OnnxEngine(variant.graph, variant.tensors).run(images)


def test_the_next_request_is_answered_by_the_new_one(portfolio: Portfolio, make: Making) -> None:
    newer = make(1)
    with initialise(portfolio, Slo(0.05)) as host:
        before = submit(host, IMAGES).result()
        began = host.status().since
        host.take_over(newer)
        after = submit(host, IMAGES).result()
        assert (before.portfolio, after.portfolio) == (portfolio.digest, newer.digest)
        assert after.variant == before.variant == "v2"
        assert same(after.logits, logits(newer, "v2", IMAGES))
        assert host.portfolio is host.status().portfolio is newer
        assert host.status().since > began


def test_no_request_is_lost_and_each_answer_is_of_the_portfolio_and_variant_that_it_names(
    portfolio: Portfolio, make: Making
) -> None:
    """Clients hammer while portfolios come and go, whose normalisation differs too, and variants switch."""
    others = [make(1), make(2, spec=replace(SPEC, mean=(0.1,), std=(0.9,))), portfolio]
    known = {each.digest: each for each in others}
    expected = {
        (each.digest, name): logits(each, name, each.input_spec.normalise(PIXELS))
        for each in others
        for name in each.names
    }
    switcher = Switcher(portfolio.profiles, Tour("v0", "v2", "v1"), dwell=0.0)
    with Host(portfolio, switcher, lambda v: OnnxEngine(v.graph, v.tensors), servers=2) as host:
        stop = threading.Event()

        def client(_: int) -> list[tuple[str, str]]:
            named = []
            while not stop.is_set():
                with host.request() as request:
                    answer = request.submit(request.input_spec.normalise(PIXELS)).result()
                assert same(answer.logits, expected[answer.portfolio, answer.variant])
                named.append((answer.portfolio, answer.variant))
            return named

        with ThreadPoolExecutor(3) as clients:
            running = [clients.submit(client, index) for index in range(3)]
            for turn in range(24):
                other = others[turn % 3]
                host.take_over(other)
                assert submit(host, IMAGES).result().portfolio == other.digest
                host.tick()
            stop.set()
            named = {one for future in running for one in future.result()}
        assert {digest for digest, _ in named} == set(known)
        assert host.queue == 0


def test_requests_inside_finish_on_the_old_one(portfolio: Portfolio, make: Making) -> None:
    """Those that wait as well: they were decoded for it."""
    build = Gated()
    newer = make(1)
    with Host(portfolio, Switcher(portfolio.profiles, Slo(0.05)), build) as host:
        computing = submit(host, IMAGES[:2])
        assert build.entered.wait(60)
        waiting = submit(host, IMAGES)
        host.take_over(newer)
        later = submit(host, IMAGES)
        build.gate.set()
        answers = [future.result() for future in (computing, waiting, later)]
        assert [answer.portfolio for answer in answers] == [portfolio.digest, portfolio.digest, newer.digest]
        assert same(answers[1].logits, logits(portfolio, "v2", IMAGES))


def test_what_is_known_of_the_load_and_the_node_stays_known(portfolio: Portfolio, make: Making) -> None:
    """As one that was there all the time knows it, and one that is new does not."""
    newer = make(1)
    switcher = Switcher(portfolio.profiles, Slo(0.05), dwell=0.0)
    forgetful = Switcher(newer.profiles, Slo(0.05), dwell=0.0)
    with Host(portfolio, switcher, Gated()) as host:
        slow = (Service("v2", 1, 10 * portfolio.profiles["v2"].latency.p50_ms / 1e3, 0.5),) * 20
        for second in range(4):
            switcher.observe(Observation(float(second), requests=80, services=slow))
        host.take_over(newer)
        renewed = host._switcher
        assert renewed is not switcher
        # The node takes ten times as long as profiled, and decoding comes to it.
        assert (forgetful._times.overhead, forgetful._times.predict("v2", 1)) == (0, pytest.approx(0.001))
        assert renewed._times.overhead > 0.1
        assert renewed._times.predict("v2", 1) - renewed._times.overhead > 0.003
        quiet = Observation(4.0, requests=8)
        assert forgetful.observe(quiet).rate == pytest.approx(8)
        assert renewed.observe(quiet).rate > 20


def test_what_the_old_one_answers_afterwards_teaches_nothing_of_the_new_one(
    portfolio: Portfolio, make: Making
) -> None:
    build = Gated()
    with Host(portfolio, Switcher(portfolio.profiles, Slo(0.05)), build) as host:
        inside = submit(host, IMAGES[:2])
        assert build.entered.wait(60)
        host.take_over(make(1, "a", "b"))
        build.gate.set()
        inside.result()
        submit(host, IMAGES).result()
        assert [service.variant for service in host._services] == [host.active]
        host.tick()
        assert host.queue == 0


def test_a_variant_of_the_active_one_s_name_goes_on_or_else_the_median(
    portfolio: Portfolio, make: Making
) -> None:
    with initialise(portfolio, Slo(0.05)) as host:
        assert host.active == "v2"
        host.take_over(make(1, "a", "b", "v2", "c"))
        assert host.active == "v2"
        host.take_over(make(2, "a", "b", "c"))
        assert host.active == "b"
        assert host.status().usable == ("a", "b", "c")


BAD = {
    "another shape": (PackageError, r"shape \(1, 8, 6\) .* send pixels of shape \(1, 6, 6\)"),
    "another range": (PackageError, "up to 255"),
    "other classes": (PackageError, r"3 classes \(one, …, three\)"),
    "damaged": (PackageError, "sha256|DEFLATE"),
    "does not run": (EngineError, "not on this node"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_one_is_refused_and_the_old_one_serves_on(
    portfolio: Portfolio, make: Making, kind: str
) -> None:
    match kind:
        case "another shape":
            bad = make(1, spec=replace(SPEC, height=8))
        case "another range":
            bad = make(1, spec=replace(SPEC, pixel_max=255.0))
        case "other classes":
            bad = make(1, spec=replace(SPEC, classes=("one", "two", "three")))
        case "damaged":
            bad = damaged(make)
        case _:
            bad = make(7)

    def build(variant: Variant) -> OnnxEngine:
        if np.array_equal(variant.tensors["classifier.weight"], unfit):
            raise EngineError("not on this node")
        return OnnxEngine(variant.graph, variant.tensors)

    unfit = make(7).inflate("v2").tensors["classifier.weight"]
    error, says = BAD[kind]
    with Host(portfolio, Switcher(portfolio.profiles, Slo(0.05)), build) as host:
        ready = host.tick() and set(host.status().ready)
        with pytest.raises(error, match=says):
            host.take_over(bad)
        answer = submit(host, IMAGES).result()
        assert answer.portfolio == portfolio.digest
        assert same(answer.logits, logits(portfolio, answer.variant, IMAGES))
        host.tick()
        assert set(host.status().ready) == ready
        del bad
        gc.collect()  # the error's traceback
        assert host.status().memory_bytes == portfolio.deflated_bytes + 1000 * len(ready)


def damaged(make: Making) -> Portfolio:
    """Opens, but the last variant's content is not what the manifest declares."""
    whole = make(1)
    variants = [whole.inflate(name) for name in whole.names]
    data = pack(variants, SPEC, model="tiny", provenance={"seed": "1"})
    victim = whole.manifest.variants[-1].tensors[1].entry.encode()
    at = data.index(victim) + len(victim) + 20
    return Portfolio.open(data[:at] + bytes([data[at] ^ 0x55]) + data[at + 1 :])


def seven_logits(variant: Variant) -> Variant:
    model, tensors = onnx.ModelProto.FromString(variant.graph), dict(variant.tensors)
    for initializer in model.graph.initializer:
        if initializer.name.startswith("classifier"):
            shape = (7, *tensors[initializer.name].shape[1:])
            tensors[initializer.name] = np.ones(shape, np.float32)
            initializer.dims[:] = shape
            length = next(entry for entry in initializer.external_data if entry.key == "length")
            length.value = str(tensors[initializer.name].nbytes)
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 7
    profile = of_tensors(variant.profile, tensors)
    return replace(variant, graph=model.SerializeToString(), tensors=tensors, profile=profile)


def one_image_at_a_time(variant: Variant) -> Variant:
    model = onnx.ModelProto.FromString(variant.graph)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    return replace(variant, graph=model.SerializeToString())


def not_a_number(variant: Variant) -> Variant:
    bias = np.array([0, np.nan, 0], np.float32)
    return replace(variant, tensors={**variant.tensors, "classifier.bias": bias})


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (seven_logits, r"answers 1 images with float32 \(1, 7\): it has to be float32 \(1, 3\)"),
        (one_image_at_a_time, r"cannot answer float32 images of shape \(2, 1, 6, 6\)"),
        (not_a_number, "not finite"),
    ],
)
def test_one_that_answers_otherwise_than_it_declares_is_refused(
    portfolio: Portfolio, make: Making, spoil: Callable[[Variant], Variant], says: str
) -> None:
    good = make(1)
    bad = Portfolio.open(
        pack([spoil(good.inflate(name)) for name in good.names], SPEC, model="tiny", provenance={})
    )
    with initialise(portfolio, Slo(0.05)) as host:
        with pytest.raises(EngineError, match=says):
            host.take_over(bad)
        assert submit(host, IMAGES).result().portfolio == portfolio.digest
    with pytest.raises(EngineError, match=says):
        initialise(bad, Slo(0.05))


def test_one_without_the_fixed_variant_is_refused(portfolio: Portfolio, make: Making) -> None:
    with initialise(portfolio, Fixed("v4")) as host:
        with pytest.raises(EngineError, match="no variant is called 'v4'"):
            host.take_over(make(1))
        assert submit(host, IMAGES).result().variant == "v4"


@pytest.mark.parametrize(("spare", "first"), [(2000, "v2"), (1099, "v0")])
def test_both_fit_the_budget_at_once_or_the_new_one_is_refused(
    portfolio: Portfolio, make: Making, spare: int, first: str
) -> None:
    newer = make(1)
    newer_small = Portfolio.open(
        pack(
            [
                replace(newer.inflate(name), profile=replace(newer.profiles[name], memory_bytes=memory))
                for name, memory in (("v0", 99), ("v1", 1000), ("v2", 1000))
            ],
            SPEC,
            model="tiny",
            provenance={},
        )
    )
    both = portfolio.deflated_bytes + newer_small.deflated_bytes
    with initialise(portfolio, Slo(0.05), memory_bytes=both + spare + TENSOR_BYTES) as host:
        host.take_over(newer_small)
        assert submit(host, IMAGES).result().variant == first
    least = both + 1099 + TENSOR_BYTES
    with initialise(portfolio, Slo(0.05), memory_bytes=least - 1) as host:
        with pytest.raises(EngineError, match=f"memory_bytes is {least - 1}: v0, .* take {least}"):
            host.take_over(newer_small)
        assert submit(host, IMAGES).result().portfolio == portfolio.digest


def test_while_a_newer_one_is_built_however_long_the_old_one_answers_and_switches(
    portfolio: Portfolio, make: Making
) -> None:
    newer = make(1, "v0", "v1", "v2", "v3", "v4")
    inside, gate = threading.Event(), threading.Event()

    def build(variant: Variant) -> OnnxEngine:
        if any((variant.tensors["classifier.bias"] == bias).all() for bias in biases):
            inside.set()
            assert gate.wait(60)
        return OnnxEngine(variant.graph, variant.tensors)

    biases = [newer.inflate(name).tensors["classifier.bias"] for name in newer.names]
    switcher = Switcher(portfolio.profiles, Tour("v0", "v4", "v1"), dwell=0.0)
    memory_bytes = portfolio.deflated_bytes + newer.deflated_bytes + 4000
    with Host(portfolio, switcher, build, memory_bytes=memory_bytes, ahead_bytes=0) as host:
        taking = threading.Thread(target=host.take_over, args=(newer,))
        taking.start()
        assert inside.wait(60)
        for name in ("v0", "v4", "v1"):
            assert host.tick().variant == name
            assert submit(host, IMAGES).result().variant == name
            assert host.status().memory_bytes <= memory_bytes
        gate.set()
        taking.join(60)
        answer = submit(host, IMAGES).result()
        assert (answer.portfolio, answer.variant) == (newer.digest, "v2")
        assert host.tick().variant in newer.names
        host.tick()
        gc.collect()
        both = portfolio.deflated_bytes + newer.deflated_bytes  # the test holds the old one
        assert host.status().memory_bytes == both + 1000 * len(host.status().ready)
