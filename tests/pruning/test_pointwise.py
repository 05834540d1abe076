"""Activation functions of several operators: what torch exports as such, and what anybody may write."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest
import torch
from torch import nn

import shifter
from shifter.models.export import export_architecture
from shifter.pruning.exactness import evaluate_float64, relative_error
from shifter.pruning.plan import plan_round
from shifter.pruning.pointwise import ANYTHING, TINY, Pointwise, combined
from shifter.switching.engine import OnnxEngine
from shifter.values import InputSpec

from .families import checkpoint
from .handmade import pointwise, pooled, start
from .reducing import FLOAT64_BOUND, reduce


class Own(nn.Module):
    """Any function."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


softplus = nn.functional.softplus

FUNCTIONS = {
    "CELU": nn.CELU(0.75), "ELU": nn.ELU(1.5), "GELU": nn.GELU(), "GELU tanh": nn.GELU("tanh"),
    "Hardshrink": nn.Hardshrink(), "Hardsigmoid": nn.Hardsigmoid(), "Hardswish": nn.Hardswish(),
    "Hardtanh": nn.Hardtanh(), "LeakyReLU": nn.LeakyReLU(0.1), "LogSigmoid": nn.LogSigmoid(),
    "Mish": nn.Mish(), "PReLU": nn.PReLU(), "PReLU each": nn.PReLU(6, 0.3), "RReLU": nn.RReLU(),
    "ReLU6": nn.ReLU6(), "SELU": nn.SELU(), "SiLU": nn.SiLU(), "Softplus": nn.Softplus(2.0, 0.5),
    "Softshrink": nn.Softshrink(), "Softsign": nn.Softsign(), "Tanhshrink": nn.Tanhshrink(),
    "Threshold": nn.Threshold(0.1, 0.3),
    "square": Own(lambda x: x.relu() ** 2), "cube": Own(lambda x: x**3),
    "quick GELU": Own(lambda x: x * torch.sigmoid(1.702 * x)),
    "hard swish": Own(lambda x: x * nn.functional.relu6(x + 3) / 6),
    "mish": Own(lambda x: x * torch.tanh(softplus(x))),
    "where": Own(lambda x: torch.where(x > 0, x, 0.1 * x)),
    "smooth": Own(lambda x: (x + torch.sqrt(x * x + 1)) / 2),
    "x / (1 + |x|)": Own(lambda x: x / (1 + x.abs())),
    "log1p": Own(lambda x: torch.log1p(torch.exp(x))), "reciprocal": Own(lambda x: 1 / (1 + torch.exp(-x))),
    "masked": Own(lambda x: x * ((x > -1) & (x < 1)).float()),
}  # fmt: skip

DEAD = 3


class Side(nn.Module):
    """All functions side by side, each of channels of which some are constants."""

    def __init__(self):
        super().__init__()
        self.before = nn.ModuleList(nn.Conv2d(3, 6, 3) for _ in FUNCTIONS)
        self.functions = nn.ModuleList(FUNCTIONS.values())
        self.after = nn.ModuleList(nn.Conv2d(6, 4, 1) for _ in FUNCTIONS)
        for i, layer in enumerate(self.before):
            nn.init.zeros_(layer.weight[:DEAD])
            layer.bias.data[:DEAD] = torch.tensor([-0.7, 0.4 + i / 100, 1.3])

    def forward(self, images):
        branches = zip(self.before, self.functions, self.after, strict=True)
        return sum(after(function(before(images))) for before, function, after in branches).mean((2, 3))


@functools.cache
def side():
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        network = Side().eval()
    spec = InputSpec(3, 8, 8, 255.0, (0.0,) * 3, (1.0,) * 3, tuple("abcd"))
    return network, export_architecture(network, spec)


def test_constants_go_through_every_function():
    network, architecture = side()
    tensors = checkpoint(network)
    plan, graph, made = reduce(architecture, tensors)
    assert not plan.untouched
    widths = {part.layer.name: len(part.outputs) for part in plan.layers}
    assert {name: widths[f"before.{i}"] for i, name in enumerate(FUNCTIONS)} == dict.fromkeys(
        FUNCTIONS, 6 - DEAD
    )
    images = np.random.default_rng(0).normal(size=(8, 3, 8, 8))
    wanted = evaluate_float64(architecture, tensors, images)
    assert relative_error(evaluate_float64(graph, made, images), wanted) <= FLOAT64_BOUND
    rounded = {name: array.astype(np.float32) for name, array in made.items()}
    answers = OnnxEngine(graph, rounded).run(images.astype(np.float32))
    assert relative_error(answers, wanted) < 1e-5


def test_constants_go_through_every_function_of_a_torch_module():
    network, _ = side()
    result = shifter.prune(
        network, torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)), round_to=1
    )
    widths = {name: layer.out_channels for name, layer in zip(FUNCTIONS, result.model.before, strict=True)}
    assert widths == dict.fromkeys(FUNCTIONS, 6 - DEAD)
    assert result.relative_error <= FLOAT64_BOUND


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda d, x: d.like("Log", d.like("Abs", x)), "Log of what may be outside its domain"),
        (lambda d, x: d.like("Sqrt", x), "Sqrt of what may be outside its domain"),
        (lambda d, x: d.like("Pow", x, d.literal(0.5, np.float32)), "Pow of what may be outside its domain"),
        (lambda d, x: d.like("Div", x, d.like("Abs", x).name), "Div by an activation that may be zero"),
        (lambda d, x: d.like("Pow", x, x.name), "Pow with an exponent that is computed"),
        (
            lambda d, x: d.like("Sum", x, pointwise(d, x, 4).name),
            "Sum of activations that are no functions of one",
        ),
    ],
)
def test_what_is_not_defined_everywhere_is_left_alone(make, reason):
    d, x = start()
    architecture, tensors = d.finish([pooled(d, pointwise(d, make(d, x), 3))])
    assert list(plan_round(architecture, tensors).untouched.values()) == [reason]


def test_bounds():
    assert combined("Add", (0.0, math.inf), (1.0, 1.0)) == (1.0, math.inf)
    assert combined("Sub", (0.0, 1.0), (0.0, 2.0)) == (-2.0, 1.0)
    assert combined("Mul", (-1.0, 2.0), (-3.0, 1.0)) == (-6.0, 3.0)
    assert combined("Div", (1.0, 1.0), (2.0, math.inf)) == (0.0, 0.5)
    assert combined("Div", (1.0, 1.0), (0.0, math.inf)) == ANYTHING
    assert combined("Mul", (0.0, 0.0), ANYTHING) == ANYTHING  # of infinity nothing is said
    assert TINY > 0


def test_the_nearest_activation_that_all_are_functions_of():
    known = Pointwise()
    known.add("b", "a", lambda x: x + 1)
    known.add("c", "b", lambda x: 2 * x)
    known.add("d", "b", lambda x: x * x)
    source, functions = known.common(["c", "d"])
    assert source == "b"
    assert (functions["c"](np.float64(3)), functions["d"](np.float64(3))) == (6, 9)
    assert known.common(["c", "a"])[0] == "a"
    assert known.common(["c", "elsewhere"]) is None
