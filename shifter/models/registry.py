"""From a recipe's description of a network to the network."""

from __future__ import annotations

import torch
from torch import nn

from shifter.errors import RecipeError
from shifter.model_spec import FunctionModel, ResNetModel, TorchvisionModel, VggModel, WeightsFile
from shifter.models.files import load_weights, read_weights
from shifter.models.function import call_function
from shifter.models.resnet import ResNet
from shifter.models.vgg import Vgg
from shifter.models.weights import initialise
from shifter.models.zoo import torchvision_network
from shifter.values import InputSpec

Spec = VggModel | ResNetModel | TorchvisionModel | FunctionModel


def create(spec: Spec, input_spec: InputSpec, seed: int) -> nn.Module:
    """The network of ``spec`` at the weights that training starts from, in training mode.

    Those follow from ``spec``, ``seed`` and, where it names one, its file of weights. torch's global
    random state is left as it was; a user's function should draw from that and from no other.

    Raises:
        RecipeError: as :func:`build`; if the network does not give one float32 logit a class for
            images of ``input_spec``, be it in training or in evaluation mode.
        CheckpointError: if the file of weights is not what the recipe says, or does not fit.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        network = build(spec, classes=len(input_spec.classes), channels=input_spec.channels)
        _check_answers(network, spec.name, input_spec)
    if isinstance(spec.weights, WeightsFile):
        load_weights(network, read_weights(spec.weights), source=spec.weights.path)
    elif spec.weights != "own":
        initialise(network, seed, spec.weights)
    return network


def build(spec: Spec, classes: int, channels: int) -> nn.Module:
    """The network that ``spec`` describes, float32, in training mode, with weights of its own.

    Args:
        classes: outputs of the network.
        channels: channels of the images that it reads.

    Raises:
        RecipeError: if torchvision has no such network, or the user's function cannot be imported,
            called, or gives something else than a float32 network.
    """
    match spec:
        case VggModel():
            return Vgg(spec.stages, channels=channels, classes=classes)
        case ResNetModel():
            return ResNet(spec.widths, spec.blocks, channels=channels, classes=classes)
        case TorchvisionModel():
            return torchvision_network(spec.name, spec.arguments, classes=classes, channels=channels)
        case FunctionModel():
            return call_function(spec.name, spec.arguments, classes=classes, channels=channels)


def _check_answers(network: nn.Module, name: str, input_spec: InputSpec) -> None:
    """Asks ``network`` once in each mode; what that does to its buffers is undone."""
    # Two: in training mode, batch norm of a single value a channel is refused.
    images = torch.zeros(2, *input_spec.shape)
    wanted = (2, len(input_spec.classes))
    size = "x".join(map(str, input_spec.shape))
    before = {key: buffer.clone() for key, buffer in network.named_buffers()}
    for training in (False, True):
        network.train(training)
        mode = "training" if training else "evaluation"
        try:
            with torch.no_grad():
                answer = network(images)
        except Exception as error:
            raise RecipeError(
                f"model {name} cannot read images of {size} (channels x height x width) in {mode} mode: "
                f"{type(error).__name__}: {error}"
            ) from error
        if isinstance(answer, torch.Tensor):
            found = f"{answer.dtype} of shape {tuple(answer.shape)}".removeprefix("torch.")
        else:
            found = f"a {type(answer).__name__}"
        if found != f"float32 of shape {wanted}":
            raise RecipeError(
                f"model {name} answers 2 images of {size} in {mode} mode with {found}: "
                f"it should be one tensor of logits, float32 of shape {wanted}"
            )
    for key, buffer in network.named_buffers():
        buffer.copy_(before[key])
