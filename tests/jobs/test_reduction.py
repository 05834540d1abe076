"""What the Ray tasks of phase 2 are given. That they do it right is what tests/jobs/test_generate.py runs."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from jobs.reduction import batches
from shifter.pruning.graph import Layer
from shifter.pruning.plan import LayerPlan


def part(index: int, out: int, into: int) -> LayerPlan:
    layer = Layer(f"l{index}", "Gemm", f"l{index}.weight", None, None, padded=False)
    return LayerPlan(layer, (out, into), (0,), (0,))


@given(st.lists(st.tuples(st.integers(1, 50), st.integers(1, 50)), max_size=12), st.integers(1, 5000))
def test_every_layer_is_in_exactly_one_batch_and_no_batch_goes_on_when_it_is_full(sizes, task_bytes):
    layers = [part(i, *size) for i, size in enumerate(sizes)]
    groups = list(batches(layers, task_bytes))
    assert [layer for group in groups for layer in group] == layers
    weights = [[4 * p.widths[0] * p.widths[1] for p in group] for group in groups]
    assert all(sum(w[:-1]) < task_bytes for w in weights), "a batch ends with the layer that fills it"
    assert all(sum(w) >= task_bytes for w in weights[:-1]), "only the last may be small"
