"""The exports of this process: the same structure is traced once, since that takes seconds."""

from __future__ import annotations

import copy
import hashlib
from collections import OrderedDict
from collections.abc import Hashable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from shifter.models.export import Exported, export_traced

_HELD = 16
_exports: OrderedDict[Hashable, Exported] = OrderedDict()

_INNER = {"_parameters", "_buffers", "_modules", "_non_persistent_buffers_set", "training"}
_NO_STRUCTURE = {*_INNER, "_is_full_backward_hook", "_backward_hooks", "_backward_pre_hooks"}


def cached_export(module: nn.Module, shape: tuple[int, int, int]) -> Exported:
    """:func:`shifter.models.export.export_traced`, from memory if such a network was exported before.

    Networks are alike whose modules have the same names, classes, plain attributes and hooks, and
    whose tensors have the same names, sizes and dtypes. Code that depends on anything else, such as a
    global variable that has changed, is not told apart; the proof of exactness then refuses it.
    """
    key = (shape, *_structure(module))
    if key in _exports:
        _exports.move_to_end(key)
        return _exports[key]
    float32 = module
    if any(p.dtype != torch.float32 for p in module.parameters()):
        float32 = copy.deepcopy(module).float()
    exported = export_traced(float32, shape)
    _exports[key] = exported
    while len(_exports) > _HELD:
        _exports.popitem(last=False)
    return exported


def _structure(module: nn.Module) -> Iterator[Hashable]:
    for name, part in module.named_modules(remove_duplicate=False):
        yield (name, type(part), type(part).forward)
        for key, value in sorted(vars(part).items()):
            if key not in _NO_STRUCTURE:
                yield (key, _frozen(value))
        for key, buffer in part._buffers.items():
            if key in part._non_persistent_buffers_set:
                yield (key, _frozen(buffer))
    for key, tensor in module.state_dict(keep_vars=True).items():
        # Two names of one tensor are one initializer.
        yield (key, tuple(tensor.shape), tensor.dtype.is_floating_point)
    tied: dict[int, str] = {}
    for key, parameter in module.named_parameters(remove_duplicate=False):
        yield (key, tied.setdefault(id(parameter), key))


def _frozen(value: Any, depth: int = 4) -> Hashable:
    """Equal for attributes that say the same; functions, and what lies deeper, if they are the same."""
    if depth == 0:
        return (type(value), id(value))
    if isinstance(value, Tensor):
        content = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        return ("tensor", str(value.dtype), tuple(value.shape), hashlib.sha256(content).hexdigest())
    if isinstance(value, dict):
        return tuple((_frozen(key, depth - 1), _frozen(item, depth - 1)) for key, item in value.items())
    if isinstance(value, list | tuple):
        return (type(value), tuple(_frozen(item, depth - 1) for item in value))
    if isinstance(value, set | frozenset):
        return frozenset(_frozen(item, depth - 1) for item in value)
    if isinstance(value, partial):
        return (value.func, _frozen(value.args, depth - 1), _frozen(value.keywords, depth - 1))
    hashed: Any = type(value).__hash__
    if hashed in (object.__hash__, None) and not callable(value):
        return (type(value), _frozen(getattr(value, "__dict__", id(value)), depth - 1))
    return (type(value), value)
