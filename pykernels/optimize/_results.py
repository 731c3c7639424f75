"""A description of what a model returns, from which each call makes it again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from pykernels.optimize._graph import Made, Value, is_sequence_of_names, mapped
from pykernels.optimize._watch import Watch

SCALARS = (type(None), bool, int, float, complex, str, torch.dtype, torch.device, torch.memory_format, torch.layout)


class Unrecordable(Exception):
    """Its message says what can't be written down."""


def described(result: Any, value: Callable[[torch.Tensor], Value | None], watch: Watch) -> Any:
    """The nest of ``result``, with the ``value`` of each tensor in it.

    Raises:
        Unrecordable: nothing equal to it can be made.
    """

    def leaf(x: Any) -> Any:
        if isinstance(x, torch.Tensor):
            known = value(x)
            if known is None:
                raise Unrecordable("returns a tensor from elsewhere")
            return known
        if isinstance(x, SCALARS) or type(x) is torch.Size:
            return x
        if Made.suits(x):
            items = dict(x.items()) if isinstance(x, dict) else None
            attributes = {k: mapped(v, leaf) for k, v in getattr(x, "__dict__", {}).items()}
            return Made(type(x), mapped(items, leaf), attributes)
        raise Unrecordable(f"returns a {type(x).__name__}")

    _check_containers(result, watch, set())
    return mapped(result, leaf)


def _check_containers(x: Any, watch: Watch, seen: set[int]) -> None:
    """What is made again at each call must not be held elsewhere too."""
    if isinstance(x, list | dict) or Made.suits(x):
        if id(x) in seen or watch.knows(x):
            raise Unrecordable(f"returns a {type(x).__name__} that is held elsewhere as well")
        seen.add(id(x))
    kind = type(x)
    named = hasattr(kind, "_fields") or is_sequence_of_names(kind)
    if isinstance(x, tuple) and kind not in (tuple, torch.Size) and not named:
        raise Unrecordable(f"returns a {kind.__name__}")
    if isinstance(x, dict) and any(isinstance(key, torch.Tensor) for key in x):
        raise Unrecordable("returns a dict with tensors as keys")
    inside = x.values() if isinstance(x, dict) else x if isinstance(x, tuple | list) else ()
    for held in (*inside, *(vars(x).values() if Made.suits(x) and hasattr(x, "__dict__") else ())):
        _check_containers(held, watch, seen)


def leaves(nest: Any) -> list[Any]:
    """What is in it that is not a container."""
    found: list[Any] = []
    mapped(nest, found.append)
    return found


def has_dicts(nest: Any) -> bool:
    """Is a dict in it, or a tuple of a class of its own?"""
    if isinstance(nest, tuple | list):
        return any(has_dicts(x) for x in nest) or (isinstance(nest, tuple) and type(nest) is not tuple)
    return isinstance(nest, dict)
