"""Weights in a kernel's own layout: made once, kept beside the module's parameters, made again when those change.

A change is: another tensor in a parameter's place, an in-place write (optimizer step, load_state_dict: torch counts a
version), other memory under the same parameter (``p.data = ...``, ``.to()``), another dtype asked for, or another ISA
in force, a step of any optimizer (the fused ones count no version). A write behind autograd's back goes unseen, that is
through ``p.data``, a NumPy view or another process: call ``repack`` after one.

On CUDA a pack is finished before anyone sees it (one wait for the stream when it is made, none after), so that any
stream may read it. A pack made while a CUDA graph is captured is the graph's own and is not kept: its memory holds
nothing before the first replay. So call the module once before capturing, or the graph packs at each replay.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.optim.optimizer import register_optimizer_step_post_hook

from pykernels import _native
from pykernels.ops import _dispatch
from pykernels.ops._op import Op

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
    """An ordinary tensor or parameter of a CPU or a CUDA device."""
    return (type(t) is Tensor or type(t) is nn.Parameter) and (t.is_cpu or t.is_cuda)


@functools.cache
def _isa_function() -> Callable[[], str]:
    return _native.introspect().active_isa


def active_isa() -> str:
    """The ISA in force."""
    return _isa_function()()


def isa_of(device: torch.device) -> str | None:
    """The ISA that a pack on ``device`` depends on; None on CUDA, where there is one layout."""
    return active_isa() if device.type == "cpu" else None


def capturing(device: torch.device) -> bool:
    """Is the current stream of ``device`` being captured into a CUDA graph?"""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def finish(device: torch.device) -> None:
    """Waits for what was enqueued on the current stream of ``device``, so that other streams may read it."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()


class Pack:
    """Packed weights, and what they were made from. Never changed: a thread sees one or another, not a mixture."""

    __slots__ = ("dtype", "index", "isa", "sources", "steps", "storages", "tensor")

    def __init__(
        self,
        names: Sequence[str],
        tensors: Sequence[Tensor],
        dtype: torch.dtype,
        make: Callable[[list[Tensor]], Tensor],
    ) -> None:
        self.dtype = dtype
        device = tensors[0].device
        self.index = tensors[0].get_device()  # -1 on the CPU
        self.isa = isa_of(device)
        self.steps = _steps
        # The versions before the packing: if another thread changes a tensor meanwhile, the next call sees it.
        self.sources = tuple((n, t, t._version, t.data_ptr()) for n, t in zip(names, tensors, strict=True))
        # Kept alive, so that nothing that replaces them (``p.data = other``) can get their addresses.
        self.storages = [t.detach() for t in tensors]
        self.tensor = make([t.to(dtype) for t in self.storages])
        if not capturing(device):
            finish(device)

    def is_of(self, parameters: dict[str, Any], dtype: torch.dtype, index: int) -> bool:
        """Would packing these parameters anew, for inputs on device ``index``, give the same?"""
        if dtype is not self.dtype or self.steps != _steps or index != self.index:
            return False
        for name, tensor, version, pointer in self.sources:
            if parameters.get(name) is not tensor or tensor._version != version or tensor.data_ptr() != pointer:
                return False
        return self.isa is None or self.isa == active_isa()


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
        op: Op,
        make: Callable[[list[Tensor]], Tensor],
        inputs: Sequence[Tensor],
    ) -> Pack | None:
        """The packed parameters ``names`` for ``inputs`` (the first one's dtype and device count), made if need be.

        None where the plain op has to run: a gradient is wanted, a tracer looks on, the kernels do not take these
        tensors, or the parameters cannot be watched (they are computed, or made in inference mode).
        """
        if _native.error is not None or not undisturbed():
            return None
        for t in inputs:
            if not plain(t):
                return None
        first = inputs[0]
        kind = "cpu" if first.is_cpu else "cuda"
        if _dispatch._current() not in ("auto", kind):
            return None
        parameters: dict[str, Any] = self._parameters
        if torch.is_grad_enabled() and (
            any(t.requires_grad for t in inputs) or any(p is not None and p.requires_grad for p in parameters.values())
        ):
            return None
        dtype, autocast = first.dtype, False
        if torch._C._is_any_autocast_enabled() and dtype is not torch.float64 and torch.is_autocast_enabled(kind):
            dtype, autocast = torch.get_autocast_dtype(kind), True
        # Published in one assignment. Threads that meet here may each make one; any will do.
        pack = self._pack
        index = first.get_device()
        if pack is not None and pack.is_of(parameters, dtype, index):
            return pack
        tensors: list[Any] = [parameters.get(name) for name in names]
        if dtype not in op.takes(kind) or not _dispatch.has_native(op, first.device):
            return None
        if not all(plain(t) and not t.is_inference() and t.get_device() == index for t in tensors):
            return None
        if not autocast and any(t.dtype is not dtype for t in tensors):
            return None
        with torch.inference_mode(False), torch.no_grad():
            pack = Pack(names, tensors, dtype, make)
        if not capturing(first.device):
            self._pack = pack
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
