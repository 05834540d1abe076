"""architecture.onnx computes what the network computes, and holds none of its weights."""

import copy
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from pydantic import TypeAdapter

import shifter
from shifter.errors import GraphError
from shifter.model_spec import Model, VggModel
from shifter.models import build, create, export_architecture, initialise

from .conftest import images_of

TINY = images_of(3, 8, 6)
SMALL = images_of(3, 32, 32)
NETWORKS = {
    "vgg": ({"stages": ((4, 6), (8,))}, TINY),
    "resnet": ({"widths": (4, 8), "blocks": 2}, TINY),
    "resnet20": ({}, TINY),
    "vgg16": ({}, images_of(3, 16, 16)),
    "option_a:network": ({"arguments": {"blocks": 1}}, TINY),
    "torchvision:resnet18": ({}, SMALL),
    "torchvision:mobilenet_v3_small": ({}, SMALL),
}
# One of each family of torchvision's, as small as it comes; transformers want their own image size.
MORE = {
    "torchvision:alexnet": 64,
    "torchvision:convnext_tiny": 32,
    "torchvision:densenet121": 32,
    "torchvision:efficientnet_b0": 32,
    "torchvision:efficientnet_v2_s": 32,
    "torchvision:googlenet": 32,
    "torchvision:inception_v3": 96,
    "torchvision:maxvit_t": 224,
    "torchvision:mnasnet0_5": 32,
    "torchvision:mobilenet_v2": 32,
    "torchvision:regnet_x_400mf": 32,
    "torchvision:regnet_y_400mf": 32,
    "torchvision:resnext50_32x4d": 32,
    "torchvision:shufflenet_v2_x0_5": 32,
    "torchvision:squeezenet1_1": 32,
    "torchvision:swin_t": 32,
    "torchvision:swin_v2_t": 64,
    "torchvision:vgg11_bn": 32,
}
EVERY = [
    *NETWORKS,
    *(pytest.param(name, marks=[pytest.mark.long, pytest.mark.timeout(600)]) for name in MORE),
]


def network_of(name, seed):
    """A network that answers differently from image to image, and the images that it reads."""
    fields, images = NETWORKS.get(name) or ({}, images_of(3, MORE[name], MORE[name]))
    network = create(TypeAdapter(Model).validate_python({"name": name, **fields}), images, seed)
    norms = [n for n in network.modules() if isinstance(n, torch.nn.modules.batchnorm._BatchNorm)]
    before = [(norm, norm.momentum) for norm in norms]
    for norm in norms:
        norm.momentum = 1.0  # statistics of the next batch alone
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        network(torch.randn(16, *images.shape, generator=generator))
    for norm, momentum in before:
        norm.momentum = momentum
    return network, images


@pytest.fixture(scope="module", params=EVERY)
def exported(request):
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parent)
        network, images = network_of(request.param, 0)
    assert network.training
    graph = export_architecture(network, images)
    assert network.training, "the export leaves the network's mode as it was"
    return network, images, graph


def external(tensor):
    return {entry.key: entry.value for entry in tensor.external_data}


def test_every_tensor_is_external_under_its_own_name(exported):
    network, _, graph = exported
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
    _, images, serialised = exported
    graph = onnx.load_from_string(serialised).graph

    def described(value):
        kind = value.type.tensor_type
        sizes = [d.dim_param or d.dim_value for d in kind.shape.dim]
        return value.name, kind.elem_type, sizes

    assert [described(v) for v in graph.input] == [
        ("images", onnx.TensorProto.FLOAT, ["batch", *images.shape])
    ]
    assert [described(v) for v in graph.output] == [("logits", onnx.TensorProto.FLOAT, ["batch", 5])]


def test_with_its_weights_it_answers_as_the_network_does(exported):
    """As near to the network in float64 as it is itself, by the variation over images."""
    network, images, graph = exported
    state = {n: t.numpy() for n, t in network.state_dict().items()}
    inputs = np.random.default_rng(5).normal(size=(5, *images.shape)).astype(np.float32)
    exact = copy.deepcopy(network).eval().double()
    with torch.inference_mode():
        reference = exact(torch.from_numpy(inputs).double()).numpy()
        own = network.eval()(torch.from_numpy(inputs)).numpy()
    network.train()
    variation = np.linalg.norm(reference - reference.mean(axis=0))
    own_error = np.linalg.norm(own - reference) / variation
    assert own_error < 1e-2, "the network has to tell one image from another"
    for count in (1, 2, 5):
        answer = run(graph, state, inputs[:count])
        assert np.linalg.norm(answer - reference[:count]) / variation <= 4 * own_error + 1e-6


def run(graph, state, inputs):
    """What ONNX Runtime answers with the tensors ``state``."""
    buffers = {name: np.ascontiguousarray(array).tobytes() for name, array in state.items()}
    options = onnxruntime.SessionOptions()
    options.add_external_initializers_from_files_in_memory(
        list(buffers), list(buffers.values()), [len(b) for b in buffers.values()]
    )
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    return session.run(["logits"], {"images": inputs})[0]


def test_the_bytes_depend_on_the_structure_alone():
    graphs = {export_architecture(*network_of("resnet", seed)) for seed in (0, 1)}
    assert len(graphs) == 1
    assert str(Path(shifter.__file__).parent).encode() not in graphs.pop()


def test_a_weight_that_is_transposed_keeps_its_name():
    """The exporter writes a linear layer of more than two axes so; the copy must not become a constant."""

    class Everywhere(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = torch.nn.Linear(3, 5)

        def forward(self, images):
            return self.linear(images.permute(0, 2, 3, 1)).mean((1, 2))

    network = Everywhere()
    initialise(network, 0)
    state = {n: t.numpy() for n, t in network.state_dict().items()}
    inputs = np.random.default_rng(0).normal(size=(2, *TINY.shape)).astype(np.float32)
    graph = export_architecture(network, TINY)
    expected = network(torch.from_numpy(inputs)).detach().numpy()
    np.testing.assert_allclose(run(graph, state, inputs), expected, rtol=1e-4, atol=1e-5)


def test_images_that_vanish_in_the_poolings_are_refused():
    network = build(VggModel(name="vgg", stages=((2,), (2,), (2,), (2,), (2,))), classes=5, channels=3)
    with pytest.raises(GraphError, match="Vgg cannot be exported for images of 3x8x6"):
        export_architecture(network, TINY)


def test_a_tensor_that_inference_does_not_read_is_named():
    class Idle(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.used = torch.nn.Linear(3, 5)
            self.idle = torch.nn.Linear(3, 5)

        def forward(self, images):
            return self.used(images.mean((2, 3)))

    with pytest.raises(GraphError, match=r"idle\.bias, idle\.weight"):
        export_architecture(Idle(), TINY)
    graph = onnx.load_from_string(export_architecture(Idle(), TINY, unread="drop")).graph
    stored = {t.name for t in graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL}
    assert stored == {"used.weight", "used.bias"}


def test_the_export_leaves_every_part_in_its_own_mode():
    """As a user has them who trains on with batch norm frozen."""
    network, images = network_of("resnet", 0)
    network.stem.eval()
    before = [part.training for part in network.modules()]
    export_architecture(network, images)
    assert [part.training for part in network.modules()] == before
