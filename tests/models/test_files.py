"""Weights from files come in whole, bit for bit, or not at all."""

import hashlib
import io
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from pydantic import TypeAdapter

from shifter.errors import CheckpointError
from shifter.model_spec import Model, ResNetModel, WeightsFile
from shifter.models import build, create, load_weights, read_weights
from shifter.sparse import CheckpointMeta, encode
from shifter.values import Mask

from .conftest import images_of

SPEC = {"name": "resnet", "widths": [4, 8], "blocks": 1}


def spec_of(**fields):
    return TypeAdapter(Model).validate_python({**SPEC, **fields})


@pytest.fixture
def trained(rgb):
    """A state_dict that no first weights equal."""
    network = create(spec_of(weights="openlth"), rgb, seed=11)
    with torch.no_grad():
        network(torch.rand(4, *rgb.shape))
    return network.state_dict()


def without_counters(state):
    return {name: t for name, t in state.items() if not name.endswith("num_batches_tracked")}


def as_checkpoint(state, mask):
    arrays = {name: t.numpy().copy() for name, t in without_counters(state).items()}
    for name, kept in mask.items():
        arrays[name][~kept] = 0.0
    return encode(arrays, mask, CheckpointMeta(1, 10, 2.0, 0.5, 0.5, mask.digest()))


def saved(content):
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def prefixed(state, prefix):
    return {prefix + name: t for name, t in state.items()}


FORMS = {
    "a.pt": saved,
    "upper.PTH": saved,
    "wrapped.th": lambda state: saved({"best_prec1": 91.7, "state_dict": prefixed(state, "module.")}),
    "compiled.pt": lambda state: saved({"model": prefixed(state, "module._orig_mod."), "epoch": 3}),
    "openlth.pth": lambda state: saved({"model_state_dict": state, "optimizer_state_dict": {"state": {}}}),
    "old.pt": lambda state: saved(without_counters(state)),
    "double.pt": lambda state: saved(
        {n: t.double() if t.is_floating_point() else t for n, t in state.items()}
    ),
    "a.safetensors": safetensors.torch.save,
}


@pytest.mark.parametrize("place", FORMS)
def test_training_starts_from_the_tensors_of_the_file(place, trained, tmp_path, rgb):
    (tmp_path / place).write_bytes(FORMS[place](trained))
    network = create(spec_of(weights=str(tmp_path / place)), rgb, seed=0)
    found = network.state_dict()
    assert network.training
    for name, tensor in without_counters(trained).items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name


def test_a_sparse_checkpoint_comes_with_its_zeros(trained, tmp_path, rgb):
    random = np.random.default_rng(0)
    names = [name for name in trained if name.endswith("conv1.weight")]
    mask = Mask({name: random.random(trained[name].shape) < 0.5 for name in names})
    (tmp_path / "round.arrow").write_bytes(as_checkpoint(trained, mask))
    found = create(spec_of(weights=str(tmp_path / "round.arrow")), rgb, seed=0).state_dict()
    for name, tensor in without_counters(trained).items():
        expected = tensor * torch.tensor(mask[name]) if name in mask else tensor
        assert torch.equal(found[name], expected), name


def test_a_network_whose_own_names_begin_with_a_prefix_keeps_them(trained):
    class Wrapped(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.module = build(spec_of(), classes=5, channels=3)

        def forward(self, images):
            return self.module(images)

    network = Wrapped()
    load_weights(network, prefixed(trained, "module."), source="here")
    assert torch.equal(network.module.stem.conv.weight, trained["stem.conv.weight"])


def test_every_mismatch_is_listed_and_nothing_loaded(trained):
    network = build(ResNetModel(name="resnet", widths=(4, 8), blocks=1), classes=5, channels=3)
    before = {name: t.clone() for name, t in network.state_dict().items()}
    wrong = dict(trained)
    del wrong["stem.norm.bias"], wrong["stages.0.0.conv1.weight"]
    wrong["stem.nrm.bias"] = torch.zeros(4)
    wrong["extra.num_batches_tracked"] = torch.tensor(3)
    wrong["classifier.weight"] = torch.zeros(10, 8)
    wrong["classifier.bias"] = torch.zeros(5, dtype=torch.int64)
    wrong["stages.1.0.norm1.running_var"] = torch.full((8,), torch.nan)
    wrong["stages.1.0.norm1.running_mean"] = torch.full((8,), 1e300, dtype=torch.float64)
    with pytest.raises(CheckpointError) as caught:
        load_weights(network, wrong, source="some.pt")
    assert str(caught.value).splitlines() == [
        "weights some.pt do not fit the network:",
        "  stem.norm.bias: missing in the file",
        "  stages.0.0.conv1.weight: missing in the file",
        "  stem.nrm.bias: not in the network",
        "  extra.num_batches_tracked: not in the network",
        "  stages.1.0.norm1.running_mean: holds NaN, infinity, or what float32 cannot hold",
        "  stages.1.0.norm1.running_var: holds NaN, infinity, or what float32 cannot hold",
        "  classifier.weight: shape (10, 8) in the file, (5, 8) in the network",
        "  classifier.bias: int64 in the file, float32 in the network",
    ]
    assert all(torch.equal(before[name], t) for name, t in network.state_dict().items())


def test_of_many_mismatches_of_a_kind_the_first_are_listed(trained):
    network = build(ResNetModel(name="resnet", widths=(4, 8), blocks=1), classes=5, channels=3)
    with pytest.raises(CheckpointError) as caught:
        load_weights(network, {"conv.weight": torch.zeros(1)}, source="some.pt")
    missing = sum(not name.endswith("num_batches_tracked") for name in trained)
    lines = str(caught.value).splitlines()
    assert len(lines) == 1 + 8 + 1 + 1
    assert lines[9] == f"  … and {missing - 8} more such, up to classifier.bias: missing in the file"
    assert lines[10] == "  conv.weight: not in the network"


class Custom:
    """Something that only code can bring back."""


UNREADABLE = {
    "code.pt": (saved({"state_dict": {"a": torch.zeros(2)}, "args": Custom()}), r"holds a \S+\.Custom\)"),
    "cut.pt": (saved({"a": torch.zeros(100)})[:200], "tensors and nothing else"),
    "noise.pt": (b"\x93not a pickle", "tensors and nothing else"),
    "empty.pt": (b"", "tensors and nothing else"),
    "number.pt": (saved(3), "hold a int: they should hold a state_dict"),
    "optimiser.pt": (saved({"lr": 0.1, "state": {}}), "hold a mapping of 'lr', 'state': they should"),
    "both.pt": (
        saved({"model": {"a": torch.zeros(2)}, "state_dict": {"a": torch.ones(2)}}),
        "hold a mapping of 'model', 'state_dict': they should",
    ),
    "nested.pt": (saved({"state_dict": {"a": [torch.zeros(2)]}}), "hold a mapping of 'state_dict'"),
    "noise.safetensors": (b"0123456789", "are no safetensors: "),
    "noise.arrow": (b"0123456789", "sparse checkpoint"),
}


@pytest.mark.parametrize("place", UNREADABLE)
def test_files_that_hold_no_weights(place, tmp_path):
    content, message = UNREADABLE[place]
    (tmp_path / place).write_bytes(content)
    file = WeightsFile(path=str(tmp_path / place), sha256=hashlib.sha256(content).hexdigest())
    with pytest.raises(CheckpointError, match=message):
        read_weights(file)


def test_a_file_that_changed_or_went_after_the_recipe_was_read(trained, tmp_path, rgb):
    path = tmp_path / "a.pt"
    path.write_bytes(saved(trained))
    spec = spec_of(weights=str(path))
    path.write_bytes(saved(trained) + b" ")
    with pytest.raises(
        CheckpointError, match=rf"a\.pt are not those of the recipe: .* {spec.weights.sha256}$"
    ):
        create(spec, rgb, seed=0)
    path.unlink()
    with pytest.raises(CheckpointError, match=r"a\.pt cannot be read: No such file"):
        create(spec, rgb, seed=0)


# A published network, which is no network of ours: its shortcuts have no weights.

CIFAR = images_of(3, 32, 32, classes="abcdefghij")


@pytest.fixture
def published(shared_data, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent)
    yield str(shared_data / "weights" / "resnet20-12fca82f.th")
    sys.modules.pop("option_a", None)


def test_published_weights_do_not_pass_for_another_resnet20(published):
    with pytest.raises(CheckpointError, match="do not fit the network") as caught:
        create(TypeAdapter(Model).validate_python({"name": "resnet20", "weights": published}), CIFAR, seed=0)
    message = str(caught.value)
    assert "stem.conv.weight: missing in the file" in message
    assert "layer1.0.bn1.bias: not in the network" in message
    assert message.endswith("up to linear.bias: not in the network")


def test_published_weights_classify_as_published(published, shared_data):
    """91.7 % of the 10,000 test images, its authors say; here of the first 500."""
    parquet = pytest.importorskip("pyarrow.parquet")
    image = pytest.importorskip("PIL.Image")
    (file,) = (shared_data / "cifar10").rglob("*test*.parquet")
    rows = parquet.read_table(file).slice(0, 500).to_pylist()
    pixels = np.stack([np.asarray(image.open(io.BytesIO(_encoded(row)))) for row in rows])
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    images = torch.from_numpy(((pixels / 255 - mean) / std).astype(np.float32)).permute(0, 3, 1, 2)
    labels = torch.tensor([row["label"] for row in rows])

    spec = TypeAdapter(Model).validate_python({"name": "option_a:network", "weights": published})
    with torch.inference_mode():
        answers = create(spec, CIFAR, seed=0).eval()(images)
    assert (answers.argmax(1) == labels).float().mean() > 0.88


def _encoded(row):
    return row["image"]["bytes"] if isinstance(row["image"], dict) else row["image"]
