"""What a stub asks about arguments and results: how to tell them apart, whether a call kept them, and their casts."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor, nn

from pykernels.optimize._graph import layout_of, suggests_channels_last

_PLAIN = (Tensor, nn.Parameter)
_SCALARS = (type(None), bool, int, float, str, torch.dtype, torch.device, torch.Size)


class Unsuited(Exception):
    """Arguments for which pykernels makes no program; the message says which."""


def signature(x: Any, tensors: list[Tensor]) -> Hashable:
    """A key that tells the arguments ``x`` from others; collects their tensors."""
    kind = type(x)
    if kind in _PLAIN:
        if x.layout is not torch.strided or x.is_neg() or x.is_conj() or x.is_nested or x.__dict__:
            raise Unsuited("a sparse, nested or lazily conjugated tensor, or one with attributes")
        for i, t in enumerate(tensors):
            if t is x:
                return "again", i
        tensors.append(x)
        return x.shape, x.stride(), kind, x.dtype, x.device, x.requires_grad
    if kind in _SCALARS:
        if kind is float and (x != x or (x == 0 and math.copysign(1, x) < 0)):  # which equals 0.0
            raise Unsuited("NaN or -0.0")
        return kind, x
    if kind is tuple or kind is list or (isinstance(x, tuple) and hasattr(x, "_fields")):
        return kind, tuple([signature(i, tensors) for i in x])
    if kind is dict:
        return kind, tuple([(signature(k, tensors), signature(v, tensors)) for k, v in x.items()])
    raise Unsuited(f"a {kind.__name__}")


def general_key(key: Any, tensors: list[Tensor]) -> Hashable:
    """``key`` with ranks and memory formats in place of sizes and strides."""
    at = iter(tensors)

    def leaf(part: Any) -> Any:
        if type(part) is not tuple:
            return part
        if len(part) == 6 and type(part[0]) is torch.Size:
            t = next(at)
            if layout_of(t) == "other":
                return part  # there are many, and eager's results lie in memory accordingly
            # Sizes 0 and 1 stand apart: such a tensor is in several formats at once.
            sizes = tuple(min(size, 2) for size in t.shape)
            # Where they are 1, torch's choice of a format goes by the strides.
            ones = tuple(stride == 1 for stride in t.stride())
            return sizes, ones, layout_of(t), suggests_channels_last(t), *part[2:]
        return tuple(leaf(p) for p in part)

    return leaf(key)


def mutable(x: Any) -> list[Any]:
    """The lists and dicts in a nest."""
    if isinstance(x, tuple | list):
        return [*([x] if isinstance(x, list) else []), *(c for i in x for c in mutable(i))]
    return [x, *(c for i in x.values() for c in mutable(i))] if isinstance(x, dict) else []


def contents(container: Any) -> list[Any]:
    """What a list or dict holds now, for `as_it_was`."""
    return [x for kv in container.items() for x in kv] if isinstance(container, dict) else list(container)


def as_it_was(container: Any, then: list[Any]) -> bool:
    """Whether it still holds the same objects."""
    now = contents(container)
    return len(now) == len(then) and all(a is b for a, b in zip(now, then, strict=True))


def holds(result: Any, container: Any) -> bool:
    """Whether the list or dict itself is in a nest."""
    if result is container:
        return True
    if isinstance(result, dict):
        return any(holds(v, container) for v in result.values())
    if dataclasses.is_dataclass(result):
        return any(holds(v, container) for v in getattr(result, "__dict__", {}).values())
    return isinstance(result, tuple | list) and any(holds(v, container) for v in result)


def cast(value: Any, source: torch.dtype, target: torch.dtype) -> Any:
    """A nest with the tensors of one dtype in another."""
    if isinstance(value, Tensor):
        return value.to(target) if value.dtype == source else value
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(cast(v, source, target) for v in value))
    if isinstance(value, tuple | list):
        return type(value)(cast(v, source, target) for v in value)
    if type(value) is dict:
        return {k: cast(v, source, target) for k, v in value.items()}
    if isinstance(value, dict):
        new = copy.copy(value)
        for k, v in value.items():
            new[k] = cast(v, source, target)
        return new
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        made: Any = copy.copy(value)
        for field in dataclasses.fields(value):
            object.__setattr__(made, field.name, cast(getattr(value, field.name), source, target))
        return made
    return value
