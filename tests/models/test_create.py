"""From a recipe's words to a network that answers, or to an error that says why not."""

import sys

import pytest
import torch
from pydantic import TypeAdapter
from torch import nn

from shifter.errors import RecipeError
from shifter.model_spec import Model
from shifter.models import build, create, initialise, prunable_names

from .conftest import images_of

CIFAR = images_of(3, 32, 32, classes="abcdefghij")


def spec_of(name, **fields):
    return TypeAdapter(Model).validate_python({"name": name, **fields})


def layers(network, kind):
    return [layer for layer in network.modules() if isinstance(layer, kind)]


# The networks of OpenLTH.


@pytest.mark.parametrize(
    ("name", "weights"),
    [("vgg11", 9_222_848), ("vgg13", 9_407_168), ("vgg16", 14_715_584), ("vgg19", 20_024_000)],
)
def test_openlth_vgg(name, weights):
    network = build(spec_of(name), classes=10, channels=3)
    depth = int(name.removeprefix("vgg"))
    # The name counts three linear layers of the original, which here are one.
    assert len(layers(network, nn.Conv2d)) == len(layers(network, nn.BatchNorm2d)) == depth - 3
    assert [tuple(layer.weight.shape) for layer in layers(network, nn.Linear)] == [(10, 512)]
    state = network.state_dict()
    assert sum(state[name].numel() for name in prunable_names(network)) == weights
    sizes = []
    for convolution in layers(network, nn.Conv2d):
        convolution.register_forward_hook(lambda layer, inputs, output: sizes.append(output.shape[2]))
    network.eval()(torch.zeros(1, 3, 32, 32))
    assert sorted(set(sizes), reverse=True) == [32, 16, 8, 4, 2]


# He et al. 2016, table 6, give 0.27, 0.46, 0.66 and 0.85 million without projections and batch norm.
@pytest.mark.parametrize(
    ("name", "parameters"),
    [("resnet20", 272_474), ("resnet32", 466_906), ("resnet44", 661_338), ("resnet56", 855_770)],
)
def test_openlth_resnet(name, parameters):
    network = build(spec_of(name), classes=10, channels=3)
    depth = int(name.removeprefix("resnet"))
    kernels = [layer.kernel_size for layer in layers(network, nn.Conv2d)]
    assert kernels.count((3, 3)) + len(layers(network, nn.Linear)) == depth
    assert kernels.count((1, 1)) == 2, "a projection where the width changes, and nowhere else"
    assert sum(p.numel() for p in network.parameters()) == parameters


def test_openlth_first_weights(rgb):
    network = create(spec_of("resnet20"), rgb, seed=5)
    scales = torch.cat([layer.weight for layer in layers(network, nn.BatchNorm2d)])
    assert 0 <= scales.min() < 0.05
    assert 0.95 < scales.max() < 1
    assert scales.mean().item() == pytest.approx(0.5, abs=0.05)
    assert all(not layer.bias.any() for layer in layers(network, nn.BatchNorm2d))
    (linear,) = layers(network, nn.Linear)
    assert 0 < linear.bias.abs().max() <= 64**-0.5
    assert linear.weight.std().item() == pytest.approx((2 / 64) ** 0.5, rel=0.1)


# First weights.

WIDTH = {"channels": 3, "classes": 5}


@pytest.mark.parametrize(
    "spec",
    [
        spec_of("vgg", stages=[[4], [6]]),
        spec_of("vgg", stages=[[4], [6]], weights="own"),
        spec_of("vgg", stages=[[4], [6]], weights="openlth"),
        spec_of("torchvision:shufflenet_v2_x0_5"),
    ],
    ids=["he", "own", "openlth", "torchvision"],
)
def test_first_weights_follow_from_the_seed_alone(spec):
    images = images_of(3, 32, 32)
    before = torch.get_rng_state()
    first = create(spec, images, seed=7).state_dict()
    torch.rand(3)
    assert not torch.equal(before, torch.get_rng_state())
    torch.set_rng_state(before)
    same, other = (create(spec, images, seed=seed).state_dict() for seed in (7, 8))
    assert torch.equal(before, torch.get_rng_state()), "the global random state is not touched"
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_he_and_openlth_draw_the_same_of_what_they_share():
    networks = [build(spec_of("resnet", widths=[4, 8], blocks=1), **WIDTH) for _ in range(2)]
    for network, scheme in zip(networks, ("he", "openlth"), strict=True):
        initialise(network, 3, scheme)
    he, openlth = (network.state_dict() for network in networks)
    assert torch.equal(he["stem.conv.weight"], openlth["stem.conv.weight"])
    assert torch.equal(he["stem.norm.weight"], torch.ones(4))
    assert not torch.equal(he["stem.norm.weight"], openlth["stem.norm.weight"])


# torchvision.


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "googlenet"])
def test_torchvision_answers_with_one_logit_a_class_in_both_modes(name):
    network = create(spec_of(f"torchvision:{name}"), CIFAR, seed=0)
    assert network.training
    for layer in layers(network, nn.BatchNorm2d):
        trace = "trying a network out leaves no trace in it"
        assert torch.equal(layer.running_var, torch.ones_like(layer.running_var)), trace
        assert layer.num_batches_tracked == 0, trace
    assert network(torch.rand(2, 3, 32, 32)).shape == (2, 10)
    assert network.eval()(torch.rand(2, 3, 32, 32)).shape == (2, 10)


def test_torchvision_takes_arguments():
    network = create(spec_of("torchvision:mnasnet0_5", arguments={"dropout": 0.375}), CIFAR, seed=0)
    assert [layer.p for layer in layers(network, nn.Dropout)] == [0.375]


@pytest.mark.parametrize(
    ("name", "arguments", "images", "message"),
    [
        (
            "resnet81",
            {},
            CIFAR,
            "torchvision has no classifier 'resnet81'; of its .* the nearest are resnet18, ",
        ),
        ("fasterrcnn_resnet50_fpn", {}, CIFAR, "no classifier 'fasterrcnn_resnet50_fpn'"),
        ("resnet18", {}, images_of(1, 32, 32), "reads images of 3 channels, and these have 1"),
        ("resnet18", {"num_classes": 3}, CIFAR, "num_classes cannot be chosen with arguments"),
        ("resnet18", {"depth": 3}, CIFAR, r"does not take the arguments \{'depth': 3\}"),
        ("alexnet", {}, CIFAR, "cannot read images of 3x32x32 .* in evaluation mode: RuntimeError"),
    ],
)
def test_torchvision_networks_that_cannot_be_had(name, arguments, images, message):
    with pytest.raises(RecipeError, match=f"^model torchvision:{name}.*{message}"):
        create(spec_of(f"torchvision:{name}", arguments=arguments), images, seed=0)


# The user's own function.

USER_CODE = """
import torch
from torch import nn

not_callable = 3

def small(classes, channels, width=4, out=None, dtype=None):
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, out or classes),
    ).to(dtype=getattr(torch, dtype or "float32"))

class Whole(nn.Module):
    def __init__(self, *, classes, channels):
        super().__init__()
        self.only = nn.Linear(channels, classes)
    def forward(self, images):
        return self.only(images.mean((2, 3)))

class Tuple(Whole):
    def forward(self, images):
        answer = super().forward(images)
        return (answer, answer) if self.training else answer

def no_network(classes, channels):
    return [classes, channels]

def fails(classes, channels):
    raise KeyError("width")

def other_words(num_classes, in_channels):
    return None
"""


@pytest.fixture
def user_code(tmp_path, monkeypatch):
    package = tmp_path / "users_package"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "networks.py").write_text(USER_CODE)
    (package / "broken.py").write_text("import a_module_that_is_not_there\n")
    (package / "worse.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "users_package"]:
        del sys.modules[name]


@pytest.mark.usefixtures("user_code")
def test_a_users_function_gets_classes_channels_and_its_arguments(rgb):
    network = create(spec_of("users_package.networks:small", arguments={"width": 7}), rgb, seed=0)
    assert network[0].weight.shape == (7, 3, 3, 3)
    assert network[-1].out_features == 5
    assert create(spec_of("users_package.networks:Whole"), rgb, seed=0).only.in_features == 3


@pytest.mark.usefixtures("user_code")
def test_a_users_network_can_be_drawn_otherwise(rgb):
    own, he = (
        create(spec_of("users_package.networks:small", weights=weights), rgb, seed=0)
        for weights in ("own", "he")
    )
    assert own[-1].bias.any()
    assert not he[-1].bias.any()


@pytest.mark.usefixtures("user_code")
@pytest.mark.parametrize(
    ("function", "arguments", "message"),
    [
        ("nowhere.networks:small", {}, "there is no module 'nowhere': it should be installed, or lie in"),
        ("users_package.nowhere:small", {}, "there is no module 'users_package.nowhere'"),
        ("users_package.broken:small", {}, "importing its module failed: .*'a_module_that_is_not_there'"),
        ("users_package.worse:small", {}, "importing its module failed: ZeroDivisionError"),
        ("users_package.networks:smal", {}, "has no 'smal'; its functions are small, "),
        ("users_package.networks:not_callable", {}, "not_callable is a int: it should be a function"),
        ("users_package.networks:no_network", {}, "returned a list: it should be a torch.nn.Module"),
        ("users_package.networks:fails", {}, "failed: KeyError: 'width'"),
        (
            "users_package.networks:other_words",
            {},
            r"cannot be called with classes=, channels= \(.*\): it is other_words\(num_classes, in_chan",
        ),
        ("users_package.networks:small", {"depth": 3}, "cannot be called with classes=, channels=, depth="),
        ("users_package.networks:small", {"classes": 3}, "classes comes from the data, not from arguments"),
        ("users_package.networks:small", {"dtype": "float64"}, "0.weight is float64 on cpu: .* float32"),
        (
            "users_package.networks:small",
            {"out": 3},
            r"answers 2 images of 3x8x6 in evaluation mode with float32 of shape \(2, 3\): it should be "
            r"one tensor of logits, float32 of shape \(2, 5\)",
        ),
        ("users_package.networks:Tuple", {}, "in training mode with a tuple"),
    ],
)
def test_a_users_function_that_gives_no_network(rgb, function, arguments, message):
    with pytest.raises(RecipeError, match=f"^model {function}.*{message}"):
        create(spec_of(function, arguments=arguments), rgb, seed=0)
