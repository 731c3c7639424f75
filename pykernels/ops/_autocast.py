"""What autocast means to an op: it gets floating arguments in autocast's dtype, and runs without autocast."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """The dtype that autocast gives an op's arguments on the device of ``x``; None if autocast leaves them alone.

    It leaves them alone when it is off, on a device without autocast ("meta"), and for float64, which it never narrows.
    """
    kind = x.device.type
    if kind == "meta" or x.dtype == torch.float64 or not torch.is_autocast_enabled(kind):
        return None
    return torch.get_autocast_dtype(kind)


def cast(dtype: torch.dtype | None, value: Any) -> Any:
    """``value`` with its floating tensors, except float64 ones, in ``dtype``; unchanged if that is None.

    It looks into lists and tuples; whatever else is not a tensor stays.
    """
    if dtype is None:
        return value
    if isinstance(value, list | tuple):
        return type(value)(cast(dtype, v) for v in value)
    if isinstance(value, Tensor) and value.is_floating_point() and value.dtype != torch.float64:
        return value.to(dtype)
    return value


def autocast_off(dtype: torch.dtype | None, x: Tensor) -> AbstractContextManager[Any]:
    """A context without autocast where ``x`` is; ``dtype`` is its `autocast_dtype`, and None needs no context."""
    return nullcontext() if dtype is None else torch.autocast(x.device.type, enabled=False)


def register_autocast(library: torch.library.Library, name: str, casts: Iterable[int] | None = None) -> None:
    """Gives ``pykernels::name`` its autocast, on CPU and CUDA: as above, for callers of `torch.ops` and for traces.

    ``casts``: the positions of the arguments that are cast; None for all.
    """
    chosen = None if casts is None else frozenset(casts)
    op = getattr(torch.ops.pykernels, name).default

    def with_dtype(kind: str) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            dtype = torch.get_autocast_dtype(kind)
            with torch.autocast(kind, enabled=False):
                return op(*(cast(dtype, a) if chosen is None or i in chosen else a for i, a in enumerate(args)))

        return run

    library.impl(name, with_dtype("cpu"), "AutocastCPU")
    library.impl(name, with_dtype("cuda"), "AutocastCUDA")
