"""Weights in a kernel's own layout: made once, kept beside the module's parameters, made again when those change.

A change is: another tensor in a parameter's place, an in-place write (optimizer step, load_state_dict: torch counts a
version), other memory under the same parameter (``p.data = ...``, ``.to()``), another dtype asked for, or another ISA
in force, a step of any optimizer (the fused ones count no version). A write behind autograd's back goes unseen, that is
through ``p.data``, a NumPy view or another process: call ``repack`` after one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.optim.optimizer import register_optimizer_step_post_hook

from pykernels import _backend, _native

_steps = 0


def _count_step(*_: Any) -> None:
    global _steps
    _steps += 1


register_optimizer_step_post_hook(_count_step)


def optimizer_steps() -> int:
    """How many steps all optimizers of this process have made."""
    return _steps


def undisturbed() -> bool:
    """No tracer, dispatch mode or transform is looking."""
    return (
        not torch.compiler.is_compiling()
        and torch._C._len_torch_dispatch_stack() == 0
        and torch._C._functorch.peek_interpreter_stack() is None
        and torch._C._get_tracing_state() is None
        and forward_ad._current_level < 0
    )


def plain(t: Any) -> bool:
    """An ordinary CPU tensor or parameter."""
    return (type(t) is Tensor or type(t) is nn.Parameter) and t.is_cpu


@functools.cache
def _isa_function() -> Callable[[], str]:
    return _native.introspect().active_isa


def active_isa() -> str:
    """The ISA in force."""
    return _isa_function()()


class Pack:
    """Packed weights, and what they were made from. Never changed: a thread sees one or another, not a mixture."""

    __slots__ = ("dtype", "isa", "sources", "steps", "storages", "tensor")

    def __init__(
        self,
        names: Sequence[str],
        tensors: Sequence[Tensor],
        dtype: torch.dtype,
        make: Callable[[list[Tensor]], Tensor],
    ) -> None:
        self.dtype = dtype
        self.isa = active_isa()
        self.steps = _steps
        # The versions before the packing: if another thread changes a tensor meanwhile, the next call sees it.
        self.sources = tuple((n, t, t._version, t.data_ptr()) for n, t in zip(names, tensors, strict=True))
        # Kept alive, so that nothing that replaces them (``p.data = other``) can get their addresses.
        self.storages = [t.detach() for t in tensors]
        self.tensor = make([t.to(dtype) for t in self.storages])

    def is_of(self, parameters: dict[str, Any], dtype: torch.dtype) -> bool:
        """Would packing these parameters anew give the same?"""
        if dtype is not self.dtype or self.steps != _steps:
            return False
        for name, tensor, version, pointer in self.sources:
            if parameters.get(name) is not tensor or tensor._version != version or tensor.data_ptr() != pointer:
                return False
        return self.isa == active_isa()


class PacksWeights(nn.Module):
    """A module that keeps its parameters packed; mix it in before torch's class.

    Any number of threads may call at once. The packed weights are in a plain attribute, not in a buffer, because
    buffers that come and go would end in every `torch.export` and shift what pairs the buffers of two models. Copies,
    pickles and state_dicts are without them; `.to()` and training drop them.
    """

    _pack: Pack | None = None

    def repack(self) -> None:
        """Forget the packed weights; the next call makes them again."""
        self._pack = None

    def _current_pack(
        self,
        names: Sequence[str],
        dtypes: Sequence[torch.dtype],
        make: Callable[[list[Tensor]], Tensor],
        inputs: Sequence[Tensor],
    ) -> Pack | None:
        """The packed parameters ``names`` for ``inputs`` (the first one's dtype counts), made if need be.

        None where the plain op has to run: a gradient is wanted, a tracer looks on, the kernels do not take these
        tensors, or the parameters cannot be watched (they are computed, or made in inference mode).
        """
        if _native.error is not None or not undisturbed() or _backend._current() not in ("auto", "cpu"):
            return None
        for t in inputs:
            if not plain(t):
                return None
        parameters: dict[str, Any] = self._parameters
        if torch.is_grad_enabled() and (
            any(t.requires_grad for t in inputs) or any(p is not None and p.requires_grad for p in parameters.values())
        ):
            return None
        dtype, autocast = inputs[0].dtype, False
        if torch._C._is_any_autocast_enabled() and dtype is not torch.float64 and torch.is_autocast_enabled("cpu"):
            dtype, autocast = torch.get_autocast_dtype("cpu"), True
        # Published in one assignment. Threads that meet here may each make one; any will do.
        pack = self._pack
        if pack is not None and pack.is_of(parameters, dtype):
            return pack
        tensors: list[Any] = [parameters.get(name) for name in names]
        if dtype not in dtypes or not all(plain(t) and not t.is_inference() for t in tensors):
            return None
        if not autocast and any(t.dtype is not dtype for t in tensors):
            return None
        with torch.inference_mode(False), torch.no_grad():
            self._pack = pack = Pack(names, tensors, dtype, make)
        return pack

    def train(self, mode: bool = True) -> Any:
        """As `nn.Module.train`; training drops the packed weights."""
        if mode:
            self._pack = None
        return super().train(mode)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        self._pack = None
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict[str, Any]:
        above = getattr(super(), "__getstate__", None)  # RNNBase has one; object has one from Python 3.11 on
        return {**(above() if callable(above) else self.__dict__), "_pack": None}
