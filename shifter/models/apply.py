"""A plan applied to a torch network by the names of its tensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import safetensors
import safetensors.torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from shifter.errors import CheckpointError
from shifter.pruning.parts import LayerPlan, PrunePlan

TORCH_PLAN, TORCH_WEIGHTS = "torch_plan.json", "model.safetensors"
"""Files of ``python -m jobs.prune``: the plan of the torch network, and what is left of its tensors."""


def apply_plan(module: nn.Module, plan: PrunePlan, tensors: Mapping[str, Tensor]) -> None:
    """Gives the layers that ``plan`` speaks of their new tensors and sizes, in place.

    Folded batch norms become ``nn.Identity``, in every place where they stand; a convolution that had
    one gets a bias. A parameter keeps its device, its dtype and whether it is trained.

    Args:
        plan: made with ``legality="torch"``, and one that :func:`misfits` finds nothing in.
        tensors: what the plan makes of the network's tensors, by name.
    """
    for part in plan.layers:
        _apply_layer(module, part, tensors)
    for name in dict.fromkeys(piece.name for piece in plan.slices):
        owner, attribute = _owner(module, name)
        _assign(owner, attribute, tensors[name])
        if isinstance(owner, _NormBase):
            owner.num_features = len(tensors[name])
        elif isinstance(owner, nn.PReLU):
            owner.num_parameters = len(tensors[name])


def load_pruned(module: nn.Module, folder: str | Path) -> nn.Module:
    """Makes ``module``, at its full size, the reduced network that ``python -m jobs.prune`` wrote.

    Args:
        module: made as the one that was reduced; its own weights do not matter. Changed in place.
        folder: what ``--out`` named.

    Raises:
        CheckpointError: if the folder does not hold such a network, or one that does not fit.
    """
    folder = Path(folder)
    try:
        plan = PrunePlan.from_json(json.loads((folder / TORCH_PLAN).read_text()))
        tensors = safetensors.torch.load_file(folder / TORCH_WEIGHTS)
        apply_plan(module, plan, tensors)
        module.load_state_dict(tensors)
    except OSError as error:
        raise CheckpointError(
            f"{folder} holds no reduced torch network ({error.strerror}: {error.filename}): "
            "python -m jobs.prune … --model … writes one"
        ) from error
    except (
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        RuntimeError,
        safetensors.SafetensorError,
    ) as error:
        raise CheckpointError(
            f"the reduced network in {folder} does not fit this {type(module).__name__}: {error}"
        ) from error
    return module


def misfits(module: nn.Module, plan: PrunePlan) -> frozenset[str]:
    """Weights of layers that cannot be changed as planned, since no layer or norm of torch's owns them.

    The code that reads such a parameter would not know of a new bias, nor of a norm that is gone.
    """
    found = set()
    for part in plan.layers:
        layer = part.layer
        owner, attribute = _owner(module, layer.weight)
        plain = isinstance(owner, _ConvNd | nn.Linear) and attribute == "weight"
        norms = [_owner(module, norm.scale)[0] for norm in layer.norms]
        plain = plain and all(isinstance(norm, _NormBase) and not _is_hooked(norm) for norm in norms)
        if not plain:
            found.add(layer.weight)
    return frozenset(found)


def _is_hooked(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _apply_layer(module: nn.Module, part: LayerPlan, tensors: Mapping[str, Tensor]) -> None:
    layer = part.layer
    owner, _ = _owner(module, layer.weight)
    assert isinstance(owner, _ConvNd | nn.Linear)
    weight, bias = tensors[layer.reduced_weight], tensors.get(layer.reduced_bias)
    _assign(owner, "weight", weight)
    if bias is not None and (owner.bias is not None or layer.norms or bool(bias.any())):
        _assign(owner, "bias", bias)
    for folded in layer.norms:
        norm, _ = _owner(module, folded.scale)
        _replace(module, norm, nn.Identity().train(norm.training))
    if isinstance(owner, nn.Linear):
        owner.out_features, owner.in_features = weight.shape
    else:
        owner.groups = part.groups
        outputs, inputs = (1, 0) if owner.transposed else (0, 1)
        sizes = list(weight.shape[:2])
        sizes[1] *= part.groups
        owner.out_channels, owner.in_channels = sizes[outputs], sizes[inputs]


def _assign(owner: nn.Module, attribute: str, content: Tensor) -> None:
    """Puts ``content`` in the place of a parameter or buffer, or of a bias that is not there yet."""
    before = getattr(owner, attribute)
    like = owner.weight if before is None else before
    assert isinstance(like, Tensor)
    content = content.to(like.device, like.dtype)
    if attribute in owner._buffers:
        setattr(owner, attribute, content)
    else:
        owner.register_parameter(attribute, nn.Parameter(content, requires_grad=like.requires_grad))


def _replace(module: nn.Module, old: nn.Module, new: nn.Module) -> None:
    for parent in list(module.modules()):
        for name, child in parent._modules.items():
            if child is old:
                parent._modules[name] = new


def _owner(module: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, attribute = name.rpartition(".")
    return module.get_submodule(path), attribute
