"""shifter.prune: a smaller network of the same class that gives the same answers."""

import copy
import gc
import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn
from torch.nn.utils import prune as masks

import shifter
from shifter.errors import CheckpointError, GraphError, InexactError
from shifter.models import exports
from shifter.models import prune as prune_module
from shifter.models.apply import apply_plan
from shifter.pruning.exactness import relative_error

from . import bare

EXACT = 1e-10
IMAGES = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(7))


def answers(network, images):
    with torch.no_grad():
        return copy.deepcopy(network).double().eval()(images.double()).numpy()


def snapshot(network):
    return {
        "state": {k: t.clone() for k, t in network.state_dict().items()},
        "modes": [part.training for part in network.modules()],
        "kinds": [type(part) for part in network.modules()],
        "trained": {k: p.requires_grad for k, p in network.named_parameters()},
        "hooks": [len(part._forward_pre_hooks) for part in network.modules()],
    }


def same(before, after):
    assert before["state"].keys() == after["state"].keys()
    assert all(torch.equal(t, after["state"][k]) for k, t in before["state"].items())
    assert all(before[key] == after[key] for key in before if key != "state")


@pytest.mark.parametrize("kind", [bare.Plain, bare.Residual])
def test_it_answers_alike_and_is_smaller(kind):
    network = bare.network(kind).train()
    network.fc2 = nn.Identity() if kind is bare.Residual else network.fc2
    before = snapshot(network)
    result = shifter.prune(network, IMAGES)
    same(before, snapshot(network))
    assert type(result.model) is kind
    assert result.relative_error <= EXACT
    # Other images than the proof's, of another size where the network takes one.
    others = torch.randn(5, 3, *((8, 8) if kind is bare.Plain else (11, 9)))
    assert relative_error(answers(result.model, others), answers(network, others)) < 1e-5
    assert [p.training for p in result.model.modules()] == [True] * len(list(network.modules()))
    first, last = result.report.parameters
    assert last == sum(p.numel() for p in result.model.parameters()) < 0.7 * first
    for part in result.model.modules():
        if isinstance(part, nn.Conv2d):
            assert part.weight.shape[:2] == (part.out_channels, part.in_channels)
            assert part.bias is not None
        assert not isinstance(part, nn.BatchNorm2d)


def test_it_can_be_trained_and_its_state_loaded():
    model = shifter.prune(bare.network(bare.Plain).train(), IMAGES).model
    twin = copy.deepcopy(model)
    for parameter in twin.parameters():
        parameter.data.zero_()
    twin.load_state_dict(model.state_dict())
    assert all(torch.equal(t, twin.state_dict()[k]) for k, t in model.state_dict().items())
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    nn.functional.cross_entropy(model(IMAGES), torch.arange(6) % 5).backward()
    optimiser.step()
    changed = [k for k, p in model.named_parameters() if not torch.equal(p, twin.get_parameter(k))]
    assert {name.partition(".")[0] for name in changed} == {"conv1", "conv2", "fc1", "fc2"}


def test_the_onnx_model_holds_its_weights_and_answers_alike(tmp_path):
    network = bare.network(bare.Residual)
    result = shifter.prune(network, (IMAGES,))
    result.save_onnx(tmp_path / "model.onnx")
    onnx.checker.check_model(onnx.load(tmp_path / "model.onnx"), full_check=True)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    for count in (1, 6):
        (found,) = session.run(None, {"images": IMAGES[:count].numpy()})
        wanted = network(IMAGES[:count]).detach().numpy()
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
    assert result.graph.exactness.float64 <= EXACT
    assert result.onnx_plan.layers
    assert json.loads(json.dumps(result.report.to_json()))["parameters"] == list(result.report.parameters)


def test_masks_and_reparametrisations_become_parameters():
    network = bare.network(bare.Plain, dead=0).train()
    masks.ln_structured(network.conv1, "weight", 0.6, n=2, dim=0)
    masks.ln_structured(network.conv2, "weight", 0.5, n=2, dim=0)
    masks.l1_unstructured(network.conv2, "bias", 3)
    nn.utils.parametrizations.weight_norm(network.fc1)
    nn.utils.spectral_norm(network.fc2)
    network(IMAGES)
    network.conv1.weight_orig.requires_grad_(False)
    network.eval()
    before, wanted = snapshot(network), network(IMAGES)
    result = shifter.prune(network, IMAGES)
    same(before, snapshot(network))
    assert torch.equal(network(IMAGES), wanted)
    assert set(result.report.computed) == {
        "conv1.weight",
        "conv2.weight",
        "conv2.bias",
        "fc1.weight",
        "fc2.weight",
    }
    assert result.model.conv1.out_channels == 8 < network.conv1.out_channels
    assert not result.model.conv1.weight.requires_grad
    assert not result.model.conv1.bias.requires_grad
    assert result.model.conv2.weight.requires_grad
    assert all(
        type(part).__module__.startswith(("torch.nn", bare.__name__)) for part in result.model.modules()
    )
    assert not any(
        name.endswith(("_orig", "_mask", "_v")) or "original" in name for name in result.model.state_dict()
    )
    torch.testing.assert_close(result.model(IMAGES), wanted, rtol=1e-4, atol=1e-5)


def test_sizes_fixed_by_hand_stay_and_the_rest_is_reduced():
    network = bare.network(bare.Views)
    result = shifter.prune(network, IMAGES)
    assert result.relative_error <= EXACT
    assert result.model.conv1.out_channels < 16
    assert result.model.conv2.out_channels == 16
    torch.testing.assert_close(result.model(IMAGES), network(IMAGES), rtol=1e-4, atol=1e-5)


def test_a_line_that_cannot_be_kept_is_named():
    with pytest.raises(GraphError) as refusal:
        shifter.prune(bare.network(bare.Checked), IMAGES)
    message = str(refusal.value)
    assert bare.__file__ in message
    assert "assert features.shape[1] == 16" in message
    assert "jobs.prune" in message


def test_code_that_computes_with_its_width_is_refused():
    with pytest.raises(InexactError, match="its own widths"):
        shifter.prune(bare.network(bare.Scaled), IMAGES)


def test_a_failing_line_of_a_part_keeps_that_part_alone():
    """The line is in a block that is used twice; only the one that fails stays as it was."""

    class Block(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.conv = nn.Conv2d(8, width, 1)
            self.back = nn.Conv2d(width, 8, 1)
            self.width = width

        def forward(self, features):
            inner = torch.relu(self.conv(features))
            if self.width == 16:
                assert inner.shape[1] == 16
            return self.back(inner)

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 8, 3)
            self.one, self.two = Block(16), Block(24)

        def forward(self, images):
            features = torch.relu(self.stem(images))
            features = self.one(features)
            features = self.two(features)
            return features.mean((2, 3))

    result = shifter.prune(bare.network(Two), IMAGES)
    assert result.relative_error <= EXACT
    assert result.model.one.conv.out_channels == 16
    assert result.model.two.conv.out_channels < 24
    assert len(result.report.fixed) == 1
    assert "features = self.one(features)" in result.report.fixed[0]
    assert result.report.fixed[0] in str(result.report)
    assert "its code fixes sizes by hand" in str(result.report.untouched)


def test_what_evaluation_does_not_read_stays():
    network = bare.network(bare.Auxiliary)
    result = shifter.prune(network, IMAGES)
    assert result.report.unread == ("aux.bias", "aux.weight")
    assert torch.equal(result.model.aux.weight, network.aux.weight)
    assert result.model.conv.out_channels < 16
    assert result.relative_error <= EXACT


@pytest.mark.parametrize("kind", [bare.Shared, bare.Functional])
def test_weights_that_no_single_layer_owns_stay_and_the_rest_is_reduced(kind):
    network = bare.network(kind)
    result = shifter.prune(network, IMAGES)
    assert result.relative_error <= EXACT
    reduced = result.model.last if kind is bare.Shared else result.model.conv
    assert reduced.out_channels < 24
    torch.testing.assert_close(result.model(IMAGES), network(IMAGES), rtol=1e-4, atol=1e-5)


def test_float64_stays_float64_and_half_is_refused():
    network = bare.network(bare.Residual).double()
    result = shifter.prune(network, IMAGES[:1].double())
    assert {p.dtype for p in result.model.parameters()} == {torch.float64}
    assert relative_error(answers(result.model, IMAGES), answers(network, IMAGES)) <= EXACT
    with pytest.raises(GraphError, match=r"are bfloat16.*model\.float\(\)"):
        shifter.prune(bare.network(bare.Residual).bfloat16(), IMAGES)


def test_a_ratio_masks_first_and_says_that_this_is_not_exact():
    network = bare.network(bare.Plain, dead=0)
    result = shifter.prune(network, IMAGES, ratio=64)
    total = sum(p.numel() for n, p in network.named_parameters() if n in weights(network))
    left = sum(int(p.count_nonzero()) for n, p in result.model.named_parameters() if n in weights(network))
    assert left <= total / 64 + result.plan.carriers * 32
    assert result.relative_error <= EXACT
    assert "NOT exact" in str(result.report)
    assert result.report.parameters[1] < result.report.parameters[0]
    assert relative_error(answers(result.model, IMAGES), answers(network, IMAGES)) > 1e-2


def weights(network):
    return {f"{n}.weight" for n, p in network.named_modules() if isinstance(p, nn.Conv2d | nn.Linear)}


def test_one_structure_is_traced_once(monkeypatch):
    monkeypatch.setattr(exports, "_exports", type(exports._exports)())
    traced = []

    def trace(module, shape):
        traced.append(type(module).__name__)
        return export(module, shape)

    export = exports.export_traced
    monkeypatch.setattr(exports, "export_traced", trace)
    shifter.prune(bare.network(bare.Shared), IMAGES)
    shifter.prune(bare.network(bare.Shared, seed=1), IMAGES[:1])
    assert traced == ["Shared"]
    other = bare.network(bare.Shared)
    other.stem.stride = (2, 2)
    shifter.prune(other, IMAGES)
    assert traced == ["Shared", "Shared"]


def test_a_result_that_is_not_exact_is_not_returned(monkeypatch):
    def wrong(module, plan, tensors):
        apply_plan(module, plan, {k: t + 1e-6 if k == "fc.bias" else t for k, t in tensors.items()})

    monkeypatch.setattr(prune_module, "apply_plan", wrong)
    with pytest.raises(InexactError, match="differs from the original"):
        shifter.prune(bare.network(bare.Residual), IMAGES)


def test_answers_that_hardly_depend_on_the_image_are_a_warning_and_no_fault(monkeypatch):
    network = bare.network(bare.Plain)
    with torch.no_grad():
        network.fc1.bias += 1e9
    result = shifter.prune(network, IMAGES)
    assert result.relative_error > EXACT
    assert "warning: its answers hardly depend on the image" in str(result.report)
    assert np.allclose(answers(result.model, IMAGES), answers(network, IMAGES), rtol=1e-5)
    assert shifter.prune(bare.network(bare.Plain), IMAGES).report.warning is None

    def wrong(module, plan, tensors):
        apply_plan(module, plan, {k: t * (1 + 1e-9) if k == "fc2.weight" else t for k, t in tensors.items()})

    monkeypatch.setattr(prune_module, "apply_plan", wrong)
    with pytest.raises(InexactError, match="differs from the original"):
        shifter.prune(network, IMAGES)


def test_the_report_says_when_there_was_nothing_to_remove():
    text = str(shifter.prune(bare.network(bare.Plain, dead=0), IMAGES).report)
    assert "no channel was found that is zero, constant or unread" in text
    assert "no channel was found" not in str(shifter.prune(bare.network(bare.Plain), IMAGES).report)


def test_the_report_gives_the_reasons_of_channels_that_stay_in_its_own_words():
    class Flat(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 16, 3)
            self.fc = nn.Linear(16 * 36, 5)

        def forward(self, images):
            return self.fc(torch.relu(self.conv(images)).view(-1, 16 * 36))

    network = Flat()
    with torch.no_grad():
        network.conv.weight[:10] = 0
        network.conv.bias[:10] = 0
    report = shifter.prune(network, IMAGES).report
    conv = report.layers[0]
    (reason,) = conv.idle
    assert (conv.idle[reason], "fixes sizes by hand" in reason) == (10, True)
    assert "shifter.kept" not in str(report)


def test_code_that_cannot_be_traced_is_named_with_the_cause():
    class Branch(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(3, 5)

        def forward(self, images):
            means = images.mean((2, 3))
            return self.fc(means) if means.sum() > 0 else self.fc(-means)

    with pytest.raises(GraphError, match=r"Branch cannot be exported for images of 3x8x8: .*data-dependent"):
        shifter.prune(Branch(), IMAGES)


def test_what_cannot_be_used_is_named():
    network = bare.network(bare.Residual)
    for inputs, says in (
        (IMAGES[0], r"float32 of shape \(3, 8, 8\)"),
        (IMAGES.to(torch.uint8), "uint8"),
        ((IMAGES, IMAGES), "is tuple"),
    ):
        with pytest.raises(GraphError, match=says):
            shifter.prune(network, inputs)
    with pytest.raises(GraphError, match="cannot answer images of 1x8x8"):
        shifter.prune(network, IMAGES[:, :1])
    with pytest.raises(GraphError, match=r"model\.module"):
        shifter.prune(nn.DataParallel(network), IMAGES)
    with pytest.raises(GraphError, match="on meta"):
        shifter.prune(network, IMAGES.to("meta"))
    for given, says in (
        (network.state_dict(), "of type OrderedDict: it should be a torch"),
        (bare.Residual, "the class Residual: it should be a torch"),
        (nn.LazyLinear(3), "LazyLinear has layers that are lazy still"),
    ):
        with pytest.raises(GraphError, match=says):
            shifter.prune(given, IMAGES)
    with pytest.raises(GraphError, match="no parameters"):
        shifter.prune(nn.ReLU(), IMAGES)
    with torch.no_grad():
        network.conv1.weight[0, 0, 0, 0] = float("nan")
    with pytest.raises(CheckpointError, match=r"conv1\.weight: NaN"):
        shifter.prune(network, IMAGES)
    gc.collect()
