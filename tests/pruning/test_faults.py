"""Faults of other tools and of likely mistakes, planted one by one: the measure catches each."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from shifter.pruning import analyse as analyse_module
from shifter.pruning import carriers as carriers_module
from shifter.pruning import read as read_module
from shifter.pruning import rebuild as rebuild_module
from shifter.pruning import rewrite as rewrite_module
from shifter.pruning import spaces as spaces_module
from shifter.pruning.analyse import Channels

from .networks import Builder
from .reducing import FLOAT64_BOUND, dead_filters, error_of

CAUGHT = 1e-3


def finish(builder, dead, bias=0.7):
    """The built network with filters of its first convolution zero, but not their biases."""
    architecture, tensors = builder.finish(builder.nodes[-1].output[0])
    first = next(name for name, array in tensors.items() if array.ndim == 4)
    tensors[first][list(dead)] = 0
    tensors[first.replace("weight", "bias")][list(dead)] = [bias * (i + 1) for i in range(len(dead))]
    return architecture, tensors, builder.images.astype(np.float32)


def begin(width=8):
    rng = np.random.default_rng(0)
    builder = Builder(rng, rng.normal(size=(6, 2, 7, 7)))
    return builder, builder.activation(builder.conv("images", width, bias=True, norm=False))


def averaged():
    """A padded average that counts its padding, as Inception has it, before a 1x1 convolution."""
    builder, x = begin()
    x = builder.pool(x, "AveragePool", pad=1)
    x = builder.activation(builder.conv(x, 6, kernel=1, pad=0, bias=True, norm=False))
    builder.linear(builder.flatten(x, average=True), 5)
    return finish(builder, (1, 3, 5))


def gated():
    """Squeeze-and-excite: each channel times a gate that the whole image decides."""
    builder, x = begin()
    pooled = builder.values[x].mean(axis=(2, 3), keepdims=True)
    gate = builder.add("GlobalAveragePool", [x], pooled)
    gate = builder.activation(builder.conv(gate, 4, kernel=1, pad=0, bias=True, norm=False))
    gate = builder.activation(builder.conv(gate, 8, kernel=1, pad=0, bias=True, norm=False), "Sigmoid")
    x = builder.add("Mul", [x, gate], builder.values[x] * builder.values[gate])
    x = builder.activation(builder.conv(x, 6, kernel=1, pad=0, bias=True, norm=False))
    builder.linear(builder.flatten(x, average=True), 5)
    return finish(builder, (1, 3, 5))


def residual():
    """One branch is dead on channels that the other keeps."""
    builder, x = begin()
    y = builder.conv(x, 8, bias=True, norm=False)
    x = builder.activation(builder.join(x, y))
    builder.linear(builder.flatten(x, average=True), 5)
    return finish(builder, (1, 3, 5))


def reshaped():
    """Tokens: positions in one axis, channels in another, by a Reshape with a literal size."""
    builder, x = begin()
    value = builder.values[x]
    n, channels = value.shape[:2]
    shape = builder.tensor("shape", np.array([0.0]))  # the place of the literal, filled in below
    tokens = builder.add("Reshape", [x, shape], value.reshape(n, channels, -1))
    mean = builder.values[tokens].mean(axis=2)
    pooled = builder.add("ReduceMean", [tokens, "axes"], mean, keepdims=0)
    builder.linear(pooled, 5)
    del builder.tensors["shape"]
    architecture, tensors, images = finish(builder, (1, 3, 5))
    return _with_literals(architecture, shape=[-1, channels, 49], axes=[2]), tensors, images


def _with_literals(architecture, **values):
    model = onnx.ModelProto.FromString(architecture)
    for name, value in values.items():
        model.graph.initializer.append(numpy_helper.from_array(np.array(value, np.int64), name))
    return model.SerializeToString()


@pytest.mark.parametrize("network", [averaged, gated, residual, reshaped])
def test_nothing_planted(network):
    assert error_of(*network()) <= FLOAT64_BOUND


def test_constants_dropped(monkeypatch):
    def forgetful(read, members, ratios):
        return 0 * carried(read, members, ratios)

    carried = rebuild_module.carried
    monkeypatch.setattr(rebuild_module, "carried", forgetful)
    assert error_of(*dead_filters(np.random.default_rng(0))) > 1e-3


def test_folded_at_a_padded_border(monkeypatch):
    monkeypatch.setattr(carriers_module, "absorbs_constants", lambda layer: True)
    assert error_of(*dead_filters(np.random.default_rng(0))) > 1e-3


def test_zero_decided_by_a_sum(monkeypatch):
    architecture, tensors, images = dead_filters(np.random.default_rng(0))
    tensors["l0.weight"][0] = 0
    tensors["l0.weight"][0, 0, 0, :2] = [1.0, -1.0]  # sums to zero, is not zero
    assert error_of(architecture, tensors, images) <= FLOAT64_BOUND

    def by_sum(matrix):
        return matrix.sum(axis=1) != 0, True

    monkeypatch.setattr(analyse_module, "nonzero_rows", by_sum)
    assert error_of(architecture, tensors, images) > 1e-3


def test_folded_after_an_average_that_counts_its_padding(monkeypatch):
    def heedless(reader, node):
        return replace(average_pool(reader, node), border="keeps")

    average_pool = read_module.READERS["AveragePool"]
    monkeypatch.setitem(read_module.READERS, "AveragePool", heedless)
    assert error_of(*averaged()) > CAUGHT


def test_a_constant_under_a_gate_taken_for_a_constant(monkeypatch):
    def heedless(op, left, right):
        joined = join(op, left, right)
        if op != "Mul":
            return joined
        return Channels.known(
            left.constant | joined.constant, np.where(left.constant, left.value, joined.value)
        )

    join = analyse_module.join
    monkeypatch.setattr(analyse_module, "join", heedless)
    assert error_of(*gated()) > CAUGHT


def test_a_residual_channel_removed_on_one_side_only(monkeypatch):
    monkeypatch.setattr(spaces_module, "join_units", lambda count, pairs: np.arange(count))
    assert error_of(*residual()) > CAUGHT


def test_a_literal_channel_count_left_in_a_reshape(monkeypatch):
    monkeypatch.setitem(rewrite_module.REWRITES, "Reshape", lambda model, node, rewrite: None)
    with pytest.raises(Exception, match=r"reshape"):
        error_of(*reshaped())
