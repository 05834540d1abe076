"""architecture.onnx computes what the network computes, and holds none of its weights."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

import shifter
from shifter.errors import GraphError
from shifter.models import build, export_architecture, initialise
from shifter.recipe import ResNetModel, VggModel
from shifter.values import InputSpec

SPECS = {
    "vgg": VggModel(name="vgg", stages=((4, 6), (8,))),
    "resnet": ResNetModel(name="resnet", widths=(4, 8), blocks=2),
}
INPUT = InputSpec(
    channels=3,
    height=8,
    width=6,
    pixel_max=255.0,
    mean=(0.4, 0.5, 0.6),
    std=(0.2, 0.3, 0.2),
    classes=("a", "b", "c", "d", "e"),
)


def network_of(family, seed):
    network = build(SPECS[family], classes=5, channels=3)
    initialise(network, seed)
    for name, buffer in network.named_buffers():
        if name.endswith("running_var"):
            buffer.uniform_(0.5, 2.0, generator=torch.Generator().manual_seed(seed))
    return network


@pytest.fixture(scope="module", params=sorted(SPECS))
def exported(request):
    network = network_of(request.param, 0)
    assert network.training
    graph = export_architecture(network, INPUT)
    assert network.training, "the export leaves the network's mode as it was"
    return request.param, network, graph


def external(tensor):
    return {entry.key: entry.value for entry in tensor.external_data}


def test_every_tensor_is_external_under_its_own_name(exported):
    _, network, graph = exported
    state = {n: t for n, t in network.state_dict().items() if not n.endswith("num_batches_tracked")}
    found = {t.name: t for t in onnx.load_from_string(graph).graph.initializer}
    assert state.keys() <= found.keys()
    for name, tensor in found.items():
        if name in state:
            assert tensor.data_location == onnx.TensorProto.EXTERNAL
            assert external(tensor) == {
                "location": name,
                "offset": "0",
                "length": str(state[name].nbytes),
            }
            assert tuple(tensor.dims) == tuple(state[name].shape)
        else:
            assert tensor.data_location == onnx.TensorProto.DEFAULT


def test_input_and_output(exported):
    graph = onnx.load_from_string(exported[2]).graph

    def described(value):
        kind = value.type.tensor_type
        sizes = [d.dim_param or d.dim_value for d in kind.shape.dim]
        return value.name, kind.elem_type, sizes

    assert [described(v) for v in graph.input] == [("images", onnx.TensorProto.FLOAT, ["batch", 3, 8, 6])]
    assert [described(v) for v in graph.output] == [("logits", onnx.TensorProto.FLOAT, ["batch", 5])]


@pytest.mark.parametrize("images", [1, 2, 7])
def test_with_its_weights_it_answers_as_the_network_does(exported, images):
    _, network, graph = exported
    buffers = {n: t.numpy().tobytes() for n, t in network.state_dict().items()}
    options = onnxruntime.SessionOptions()
    options.add_external_initializers_from_files_in_memory(
        list(buffers), list(buffers.values()), [len(b) for b in buffers.values()]
    )
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    inputs = np.random.default_rng(images).normal(size=(images, *INPUT.shape)).astype(np.float32)
    with torch.inference_mode():
        expected = network.eval()(torch.from_numpy(inputs)).numpy()
    network.train()
    (answer,) = session.run(["logits"], {"images": inputs})
    assert np.ptp(expected) > 0.1, "the network has to answer something"
    np.testing.assert_allclose(answer, expected, rtol=1e-4, atol=1e-5)


def test_the_bytes_depend_on_the_structure_alone(exported):
    family, _, graph = exported
    assert export_architecture(network_of(family, 1), INPUT) == graph
    assert str(Path(shifter.__file__).parent).encode() not in graph


def test_images_that_vanish_in_the_poolings_are_refused():
    network = build(VggModel(name="vgg", stages=((2,), (2,), (2,), (2,), (2,))), classes=5, channels=3)
    with pytest.raises(GraphError, match="Vgg cannot be exported for images of 3x8x6"):
        export_architecture(network, INPUT)


def test_a_tensor_that_inference_does_not_read_is_named():
    class Idle(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.used = torch.nn.Linear(3, 5)
            self.idle = torch.nn.Linear(3, 5)

        def forward(self, images):
            return self.used(images.mean((2, 3)))

    with pytest.raises(GraphError, match=r"idle\.bias, idle\.weight"):
        export_architecture(Idle(), INPUT)
