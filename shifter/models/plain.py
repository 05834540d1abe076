"""A copy of a user's network that holds plain tensors: no masks, no reparametrisations, one dtype."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter
from torch.nn.utils import parametrize, prune
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from shifter.errors import GraphError

_DTYPES = (torch.float32, torch.float64)
_LAZY = (UninitializedBuffer, UninitializedParameter)
_WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel)


@dataclass(frozen=True)
class Plain:
    """What :func:`plain_copy` gives.

    Args:
        module: the copy: on the CPU, every part in evaluation mode.
        computed: names of the tensors that the network computed from others, and that the copy has
            as parameters.
        dtype, device: of the original's parameters.
        training: by name, whether a part of the original was in training mode.
    """

    module: nn.Module
    computed: tuple[str, ...]
    dtype: torch.dtype
    device: torch.device
    training: dict[str, bool]


def plain_copy(model: nn.Module) -> Plain:
    """A copy whose weights are parameters again, where they were computed from masks or otherwise.

    That is what ``torch.nn.utils.prune``, ``parametrize``, ``weight_norm`` and ``spectral_norm`` do;
    their hooks are gone from the copy. Other hooks stay.

    Raises:
        GraphError: if the model is a wrapper or compiled, cannot be copied, has no parameters, or has
            them on several devices or in something else than all float32 or all float64.
    """
    _refuse_wrappers(model)
    dtype, device = _kind(model)
    try:
        module = _copy(model)
    except Exception as error:
        raise GraphError(
            f"{type(model).__name__} cannot be copied: {type(error).__name__}: {error}"
        ) from error
    training = {name: part.training for name, part in module.named_modules()}
    module.cpu().eval()
    with torch.no_grad():
        parts = list(module.named_modules())
        computed = tuple(sorted({name for part in parts for name in _settle(*part)}))
    return Plain(module, computed, dtype, device, training)


def _refuse_wrappers(model: nn.Module) -> None:
    name = type(model).__name__
    if not isinstance(model, nn.Module):
        what = f"the class {model.__name__}" if isinstance(model, type) else f"of type {name}"
        raise GraphError(f"model is {what}: it should be a torch.nn.Module, with its weights")
    if any(isinstance(tensor, _LAZY) for tensor in model.state_dict().values()):
        raise GraphError(f"{name} has layers that are lazy still: run it once on images")
    if isinstance(model, _WRAPPERS):
        raise GraphError(f"{name} only wraps a network: give the network itself, model.module")
    if hasattr(model, "_orig_mod"):
        raise GraphError(f"{name} is a compiled network: give the network itself, model._orig_mod")
    if isinstance(model, torch.jit.ScriptModule):
        raise GraphError(f"{name} is TorchScript, whose code is fixed: give the network it was made from")


def _kind(model: nn.Module) -> tuple[torch.dtype, torch.device]:
    found = dict(model.named_parameters())
    if not found:
        raise GraphError(f"{type(model).__name__} has no parameters: there is nothing to reduce")
    dtypes = {p.dtype for p in found.values()}
    if len(dtypes) > 1 or not dtypes <= set(_DTYPES):
        names = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))
        raise GraphError(
            f"the parameters of {type(model).__name__} are {names}: they should all be float32 or all "
            "float64; model.float() makes them so"
        )
    devices = {p.device for p in found.values()}
    if len(devices) > 1 or devices == {torch.device("meta")}:
        names = ", ".join(sorted(map(str, devices)))
        raise GraphError(
            f"the parameters of {type(model).__name__} are on {names}: they should be on one device"
        )
    return dtypes.pop(), devices.pop()


def _copy(model: nn.Module) -> nn.Module:
    """``copy.deepcopy``, which refuses tensors that were computed: masked weights are."""
    memo: dict[int, Any] = {}
    for part in model.modules():
        for value in vars(part).values():
            if isinstance(value, Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
    return copy.deepcopy(model, memo)


def _settle(name: str, part: nn.Module) -> Iterator[str]:
    """Makes plain parameters of what ``part`` computes, and yields their names."""
    prefix = f"{name}." if name else ""
    if parametrize.is_parametrized(part):
        for tensor in _unparametrize(part):
            yield f"{prefix}{tensor}"
    for key, hook in list(part._forward_pre_hooks.items()):
        if isinstance(hook, prune.BasePruningMethod):
            yield f"{prefix}{hook._tensor_name}"
            hook.remove(part)
            del part._forward_pre_hooks[key]
        elif isinstance(hook, WeightNorm):
            yield f"{prefix}{hook.name}"
            nn.utils.remove_weight_norm(part, hook.name)
        elif isinstance(hook, SpectralNorm):
            yield f"{prefix}{hook.name}"
            nn.utils.remove_spectral_norm(part, hook.name)


def _unparametrize(part: nn.Module) -> tuple[str, ...]:
    """As ``remove_parametrizations``, which would break the original: its class is that of the copy."""
    lists = part.parametrizations
    assert isinstance(lists, nn.ModuleDict)
    values = {tensor: getattr(part, tensor).detach().clone() for tensor in lists}
    part.__class__ = parametrize.type_before_parametrizations(part)
    del part.parametrizations
    for tensor, value in values.items():
        originals = list(lists[tensor].parameters())
        if originals:
            trained = any(original.requires_grad for original in originals)
            part.register_parameter(tensor, nn.Parameter(value, requires_grad=trained))
        else:
            part.register_buffer(tensor, value)
    return tuple(values)
