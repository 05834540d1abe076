"""The job that reduces one existing network: every kind of checkpoint, and what it refuses."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import safetensors.numpy
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from torch.nn.utils import prune as masks
from typer.testing import CliRunner, Result

from jobs.__main__ import app
from shifter.models.apply import load_pruned
from shifter.models.vgg import Vgg
from shifter.sparse import CheckpointMeta, encode
from shifter.values import Mask

CLASSES = 5
SPEC = "{name: vgg, stages: [[16, 16], [24]]}"
IMAGES = np.random.default_rng(3).normal(size=(4, 3, 8, 8)).astype(np.float32)


def prune(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["prune", *map(str, arguments)])


def dense() -> Vgg:
    """Calibrated, without a zero."""
    torch.manual_seed(0)
    network = Vgg([[16, 16], [24]], channels=3, classes=CLASSES)
    for norm in (part for part in network.modules() if isinstance(part, nn.BatchNorm2d)):
        norm.momentum = 1.0
        norm.bias.data.uniform_(-0.5, 0.5)
    with torch.no_grad():
        network(torch.randn(32, 3, 8, 8))
    return network.eval()


def kill(network: nn.Module) -> None:
    for part in network.modules():
        if isinstance(part, nn.Conv2d):
            part.weight.data[: int(0.6 * part.out_channels)] = 0


@pytest.fixture(scope="module")
def network() -> Vgg:
    """With filters that are zero."""
    made = dense()
    kill(made)
    return made


@pytest.fixture(scope="module")
def tensors(network: Vgg) -> dict[str, NDArray[np.float32]]:
    state = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    return {name: array for name, array in state.items() if not name.endswith("num_batches_tracked")}


@pytest.fixture(scope="module")
def architecture(network: Vgg, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from shifter.models.export import export_traced

    path = tmp_path_factory.mktemp("run") / "architecture.onnx"
    path.write_bytes(export_traced(network, (3, 8, 8)).architecture)
    return path


def answers(model: Path, images: NDArray[np.float32] = IMAGES) -> NDArray[np.float32]:
    """By a runtime that knows nothing of us."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    found: NDArray[np.float32] = session.run(None, {session.get_inputs()[0].name: images})[0]
    return found


def check(out: Path, network: nn.Module) -> dict[str, object]:
    """The folder's model gives the network's answers, and its files belong together."""
    with torch.no_grad():
        wanted = network(torch.from_numpy(IMAGES)).numpy()
    np.testing.assert_allclose(answers(out / "model.onnx"), wanted, rtol=1e-4, atol=1e-5)
    report: dict[str, object] = json.loads((out / "report.json").read_text())
    assert {path.name for path in out.iterdir()} == {*report["files"], "report.json"}
    before, after = report["parameters"]
    assert after < 0.6 * before
    assert report["error"]["float64"] <= 1e-10
    stored = safetensors.numpy.load_file(out / "tensors.safetensors")
    inside = {t.name: numpy_helper.to_array(t) for t in onnx.load(out / "model.onnx").graph.initializer}
    assert all(np.array_equal(array, inside[name]) for name, array in stored.items())
    plan = json.loads((out / "plan.json").read_text())
    assert [layer["layer"]["name"] for layer in plan["layers"]]
    return report


def test_a_sparse_checkpoint_with_its_architecture(
    tmp_path: Path, network: Vgg, tensors: dict[str, NDArray[np.float32]], architecture: Path
) -> None:
    mask = Mask({name: array != 0 for name, array in tensors.items() if array.ndim > 1})
    meta = CheckpointMeta(1, 10, 2.0, 0.5, 0.5, mask.digest())
    checkpoint = tmp_path / "round-01.arrow"
    checkpoint.write_bytes(encode(tensors, mask, meta))
    result = prune(checkpoint, "--architecture", architecture, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "stages.0.0.conv" in result.stdout
    assert f"written to {tmp_path / 'out'}" in result.stdout
    check(tmp_path / "out", network)
    cut = checkpoint.read_bytes()
    checkpoint.write_bytes(cut[: len(cut) // 2])
    refused(
        prune(checkpoint, "--architecture", architecture, "--out", tmp_path / "cut"),
        "damaged",
        tmp_path / "cut",
    )


def test_safetensors_with_an_architecture_and_json(
    tmp_path: Path, network: Vgg, tensors: dict[str, NDArray[np.float32]], architecture: Path
) -> None:
    checkpoint = tmp_path / "weights.safetensors"
    safetensors.numpy.save_file({f"module.{name}": array for name, array in tensors.items()}, checkpoint)
    out = tmp_path / "folder" / "out"
    result = prune(checkpoint, "--architecture", architecture, "--out", out, "--json", "--round-to", 1)
    assert result.exit_code == 0, result.output
    report = check(out, network)
    assert json.loads(result.stdout) == {k: v for k, v in report.items() if k != "files"}
    assert report["round_to"] == 1


def test_a_masked_state_dict_with_a_model_s_name(tmp_path: Path) -> None:
    """As torch.nn.utils.prune leaves it; the classes follow from the weights."""
    network = dense()
    for part in network.modules():
        if isinstance(part, nn.Conv2d):
            masks.ln_structured(part, "weight", 0.6, n=2, dim=0)
    torch.save({"state_dict": network.state_dict(), "epoch": 3}, tmp_path / "weights.pt")
    out = tmp_path / "out"
    out.mkdir()  # an empty one will do
    result = prune(tmp_path / "weights.pt", "--model", SPEC, "--input", "3x8x8", "--out", out)
    assert result.exit_code == 0, result.output
    check(out, network)
    assert "load_pruned" in result.stdout
    loaded = load_pruned(Vgg([[16, 16], [24]], channels=3, classes=CLASSES), out).eval()
    with torch.no_grad():
        wanted, found = (net(torch.from_numpy(IMAGES)) for net in (network, loaded))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    assert loaded.stages[0][0].conv.out_channels == 8


def test_a_user_s_own_network_and_a_ratio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text(
        "from shifter.models.vgg import Vgg\n"
        "def network(classes, channels):\n"
        "    return Vgg([[16, 16], [24]], channels=channels, classes=classes)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    network = dense()
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    out = tmp_path / "out"
    result = prune(
        tmp_path / "weights.pth", "--model", "mine:network", "--input", "3x8x8", "--ratio", 40, "--out", out
    )
    sys.modules.pop("mine", None)
    assert result.exit_code == 0, result.output
    assert "NOT exact" in result.stdout
    report = json.loads((out / "report.json").read_text())
    assert (report["exact"], report["ratio"]) == (False, 40)
    assert report["parameters"][1] < report["parameters"][0]


def foreign(network: Vgg, *, batch: int | str = "n", side: int | str = 8) -> onnx.ModelProto:
    """The network as another framework writes it: names of its own, weights in Constant nodes too, and
    an operator that nobody follows.
    """
    state = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    nodes, weights, source = [], [], "input_1"
    layers = [(0, 0), (0, 1), (1, 0)]
    for number, (stage, index) in enumerate(layers):
        prefix = f"stages.{stage}.{index}"
        if (stage, index) == (1, 0):
            nodes.append(
                helper.make_node("MaxPool", [source], ["pooled"], kernel_shape=[2, 2], strides=[2, 2])
            )
            nodes.append(helper.make_node("LRN", ["pooled"], ["odd"], size=1, alpha=1e-30, bias=1.0))
            source = "odd"
        kernel = numpy_helper.from_array(state[f"{prefix}.conv.weight"], f"W_{number}")
        if number == 1:
            nodes.append(helper.make_node("Constant", [], [f"W_{number}"], value=kernel))
        else:
            weights.append(kernel)
        names = [f"bn_{number}/{part}" for part in ("gamma", "beta", "mean", "var")]
        for name, key in zip(names, ("weight", "bias", "running_mean", "running_var"), strict=True):
            weights.append(numpy_helper.from_array(state[f"{prefix}.norm.{key}"], name))
        nodes += [
            helper.make_node(
                "Conv", [source, f"W_{number}"], [f"c{number}"], pads=[1] * 4, name=f"conv{number}"
            ),
            helper.make_node(
                "BatchNormalization", [f"c{number}", *names], [f"b{number}"], name=f"bn{number}"
            ),
            helper.make_node("Relu", [f"b{number}"], [f"r{number}"], name=f"relu{number}"),
        ]
        source = f"r{number}"
    weights += [
        numpy_helper.from_array(state["classifier.weight"], "dense/kernel"),
        numpy_helper.from_array(state["classifier.bias"], "dense/bias"),
    ]
    nodes += [
        helper.make_node("GlobalAveragePool", [source], ["pool"], name="pool"),
        helper.make_node("Flatten", ["pool"], ["flat"], name="flat"),
        helper.make_node("Gemm", ["flat", "dense/kernel", "dense/bias"], ["scores"], transB=1, name="gemm"),
    ]
    reads = helper.make_tensor_value_info("input_1", TensorProto.FLOAT, [batch, 3, side, side])
    gives = helper.make_tensor_value_info("scores", TensorProto.FLOAT, [batch, CLASSES])
    graph = helper.make_graph(nodes, "foreign", [reads], [gives], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_an_onnx_file_of_any_framework(tmp_path: Path, network: Vgg) -> None:
    onnx.save(foreign(network), tmp_path / "model.onnx")
    result = prune(tmp_path / "model.onnx", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    report = check(tmp_path / "out", network)
    assert "LRN" in str(report["untouched"])
    assert "LRN" in result.stdout
    by_name = {layer["name"]: layer for layer in report["layers"]}
    assert by_name["W_0"]["outputs"] == [16, 8]
    assert by_name["W_1"]["outputs"] == [16, 16], "what an unknown operator reads stays"


def test_an_onnx_file_with_its_weights_beside_it_and_a_fixed_batch(tmp_path: Path, network: Vgg) -> None:
    model = foreign(network, batch=2)
    onnx.save(
        model, tmp_path / "model.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0
    )
    result = prune(tmp_path / "model.onnx", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    with torch.no_grad():
        wanted = network(torch.from_numpy(IMAGES[:2])).numpy()
    found = answers(tmp_path / "out" / "model.onnx", IMAGES[:2])
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
    (tmp_path / "weights.bin").unlink()
    again = prune(tmp_path / "model.onnx", "--out", tmp_path / "again")
    refused(again, "weights", tmp_path / "again")


def test_an_image_of_no_fixed_size_has_to_be_named(tmp_path: Path, network: Vgg) -> None:
    onnx.save(foreign(network, side="s"), tmp_path / "model.onnx")
    out = tmp_path / "out"
    refused(prune(tmp_path / "model.onnx", "--out", out), "give --input", out)
    refused(prune(tmp_path / "model.onnx", "--out", out, "--input", "1x8x8"), "the graph reads", out)
    assert prune(tmp_path / "model.onnx", "--out", out, "--input", "3x8x8").exit_code == 0
    check(out, network)


def refused(result: Result, says: str, out: Path) -> None:
    """One line on stderr, status 1, and nothing left, not even half of it."""
    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert says in result.stderr
    assert not out.exists()
    assert not list(out.parent.glob(".*.part"))


def test_weights_that_do_not_fit_are_named(
    tmp_path: Path, tensors: dict[str, NDArray[np.float32]], architecture: Path
) -> None:
    out, checkpoint = tmp_path / "out", tmp_path / "weights.safetensors"
    name = "stages.0.0.conv.weight"
    short = {key: array for key, array in tensors.items() if key != name}
    broken = {
        "missing": (short, name),
        "shape": (tensors | {name: tensors[name][:3]}, name),
        "nan": (tensors | {name: np.full_like(tensors[name], np.nan)}, name),
        "mask shape": (
            short | {f"{name}_orig": tensors[name], f"{name}_mask": np.ones((16, 3), np.float32)},
            f"{name}_mask has shape (16, 3)",
        ),
        "mask values": (
            short | {f"{name}_orig": tensors[name], f"{name}_mask": np.full_like(tensors[name], 0.5)},
            "should hold 0 and 1",
        ),
    }
    for content, says in broken.values():
        safetensors.numpy.save_file(content, checkpoint)
        refused(prune(checkpoint, "--architecture", architecture, "--out", out), says, out)
        model = ("--model", SPEC, "--input", "3x8x8")
        refused(prune(checkpoint, *model, "--out", out), says, out)


def test_weights_of_another_implementation_want_its_class(
    tmp_path: Path, tensors: dict[str, NDArray[np.float32]]
) -> None:
    """As the ResNet-20 that everybody has: all tensors are there, under other names."""
    out, checkpoint = tmp_path / "out", tmp_path / "weights.safetensors"
    safetensors.numpy.save_file({f"other.{name}": array for name, array in tensors.items()}, checkpoint)
    result = prune(checkpoint, "--model", SPEC, "--input", "3x8x8", "--out", out)
    refused(result, "--model package.module:function", out)
    assert "stages.0.0.conv.weight: missing in the file" in result.stderr


def test_what_cannot_be_asked_for_is_named(tmp_path: Path, network: Vgg, architecture: Path) -> None:
    weights, model, out = tmp_path / "weights.pt", tmp_path / "model.onnx", tmp_path / "out"
    torch.save(network.state_dict(), weights)
    onnx.save(foreign(network), model)
    (tmp_path / "no.onnx").write_bytes(b"nothing of the kind")
    (tmp_path / "weights.h5").write_bytes(b"")
    for arguments, says in (
        ([weights], "--architecture FILE.onnx"),
        ([weights, "--architecture", architecture, "--model", "vgg16"], "either --architecture"),
        ([weights, "--model", "vgg16"], "give --input"),
        ([weights, "--model", "vgg17", "--input", "3x8x8"], "'vgg17' is unknown"),
        ([weights, "--model", SPEC, "--input", "8x8"], "CHANNELSxHEIGHTxWIDTH"),
        ([weights, "--model", SPEC, "--input", "1x8x8"], "stages.0.0.conv.weight: shape"),
        ([weights, "--model", SPEC, "--input", "3x8x8", "--classes", 7], "classifier.weight: shape"),
        ([model, "--model", "vgg16"], "leave out --architecture and --model"),
        ([model, "--ratio", 0.5], "a compression ratio is at least 1"),
        ([tmp_path / "none.onnx"], "there is no file"),
        ([tmp_path / "no.onnx"], "is no ONNX model"),
        ([tmp_path / "weights.h5"], "should end in"),
    ):
        refused(prune(*arguments, "--out", out), says, out)


def test_folders_made_for_the_result_are_gone_after_a_failure(tmp_path: Path) -> None:
    (tmp_path / "no.onnx").write_bytes(b"nothing of the kind")
    refused(
        prune(tmp_path / "no.onnx", "--out", tmp_path / "made" / "for" / "it"),
        "is no ONNX",
        tmp_path / "made",
    )


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path, network: Vgg) -> None:
    onnx.save(foreign(network), tmp_path / "model.onnx")
    result = prune(tmp_path / "model.onnx", "--out", tmp_path)
    assert result.exit_code == 1
    assert "there already" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_a_wrong_reduction_is_not_written(
    tmp_path: Path, network: Vgg, monkeypatch: pytest.MonkeyPatch
) -> None:
    from shifter import onnx_prune

    def wrong(*arguments: object) -> dict[str, NDArray[np.float64]]:
        tensors = rebuild(*arguments)
        return tensors | {"dense/kernel.bias": tensors["dense/kernel.bias"] + [1, 0, 0, 0, 0]}

    rebuild = onnx_prune.rebuild_tensors
    monkeypatch.setattr(onnx_prune, "rebuild_tensors", wrong)
    onnx.save(foreign(network), tmp_path / "model.onnx")
    result = prune(tmp_path / "model.onnx", "--out", tmp_path / "out")
    refused(result, "fault of the reduction", tmp_path / "out")
