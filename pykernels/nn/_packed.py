"""Weights in a kernel's own layout: a module makes them once, beside its parameters, and makes them again on a change.

A change is any of these:

- another tensor in a parameter's place, or under the same parameter (``p.data = ...``, ``.to()``)
- an in-place write, for which torch counts a version (load_state_dict, most optimizers)
- another dtype asked for, another ISA in force, or another value of a module's further keys
- a step of an optimizer that holds memory of these parameters, because the fused ones count no version

The steps of other optimizers leave a pack alone. Nobody sees a write behind autograd's back, that is one through
``p.data``, a NumPy view or another process: call ``repack`` after one.

Tensors made under ``torch.inference_mode()`` count no versions. On the CPU a pack keeps a copy of each such source and
compares all of it at every call, because nothing less would see every write. That is faster than the plain op while the
weights are small, and slower once they leave the cache (`torch.equal` reads a few GB/s). So each class has a limit
above which the plain op runs. On CUDA the plain op always runs: a comparison would wait for the stream, and a graph
could not capture it.

On CUDA a pack is finished before anyone sees it (one wait for the stream when it is made, none after), so that any
stream may read it. A pack made while a CUDA graph is captured belongs to the graph and is not kept: its memory holds
nothing before the first replay. So call the module once before you capture, or the graph packs at each replay.
"""

from __future__ import annotations

import functools
import os
import threading
import weakref
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.optim.optimizer import register_optimizer_step_post_hook

from pykernels import _native
from pykernels.ops import _dispatch
from pykernels.ops._autocast import autocast_dtype
from pykernels.ops._op import Op

#: A module's ``_parameters`` or ``_buffers``, and a name in it.
Slot = tuple[dict[str, Any], str]

_PLAIN = frozenset((Tensor, nn.Parameter))

# Every call asks these. To look them up by their full names would take longer than the answers.
_is_compiling = torch.compiler.is_compiling
_dispatch_modes = torch._C._len_torch_dispatch_stack
_functorch_level = torch._C._functorch.peek_interpreter_stack
_jit_trace = torch._C._get_tracing_state
_any_autocast = torch._C._is_any_autocast_enabled
asked_backend = _dispatch.asked_backend

#: Steps of optimizers, counted once it is known what they wrote to. Whoever remembers a number need not ask further.
steps = 0
#: Those of which nobody can tell whose memory they wrote.
_untold_steps = 0
_live: weakref.WeakSet[Pack] = weakref.WeakSet()
_live_lock = threading.Lock()


def _after_fork() -> None:
    """The thread that held the lock at the fork is not in the child, and would never let go."""
    global _live_lock
    _live_lock = threading.Lock()


os.register_at_fork(after_in_child=_after_fork)


def _after_step(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    """Marks the packs that lie in the memory of ``optimizer``'s parameters as stale, and counts the step."""
    global steps
    try:
        _mark(optimizer)
    finally:
        steps += 1


def _mark(optimizer: torch.optim.Optimizer) -> None:
    global _untold_steps
    if _is_compiling():
        _untold_steps += 1
        return
    with _live_lock:
        packs = list(_live)
    if not packs:
        return
    try:
        # By storage: a view or a flat buffer of a parameter is another tensor in the same memory.
        written = {p.untyped_storage().data_ptr() for group in optimizer.param_groups for p in group["params"]}
    except (RuntimeError, NotImplementedError):  # a tensor without memory of its own
        _untold_steps += 1
        return
    for pack in packs:
        if not written.isdisjoint(pack.storages):
            pack.stepped = True


register_optimizer_step_post_hook(_after_step)


def undisturbed() -> bool:
    """Whether no tracer, dispatch mode or transform observes the call."""
    return (
        not _is_compiling()
        and _dispatch_modes() == 0
        and _functorch_level() is None
        and _jit_trace() is None
        and forward_ad._current_level < 0
    )


def plain(t: Any) -> bool:
    """Whether it is an ordinary tensor or parameter of a CPU or a CUDA device."""
    return type(t) in _PLAIN and (t.is_cpu or t.is_cuda)


@functools.cache
def _isa_function() -> Callable[[], str]:
    return _native.introspect().active_isa


def capturing(device: torch.device) -> bool:
    """Is the current stream of ``device`` being captured into a CUDA graph?"""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def finish(device: torch.device) -> None:
    """Waits for what was enqueued on the current stream of ``device``, so that other streams may read it."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()


def slots_of(tensors: Sequence[Any]) -> list[Slot]:
    """Slots of ``tensors`` that stay in their places, for a pack that no module keeps."""
    return [({"": t}, "") for t in tensors]


def _twin(t: Tensor | None) -> Tensor | None:
    """The same memory under another name; a copy of what counts no versions."""
    if t is None:
        return None
    return t.clone() if t.is_inference() else t.detach()


class Pack:
    """Packed weights, and what they were made from. A thread sees one or another, not a mixture.

    ``slots`` name the tensors, of which some may be None; ``key`` is whatever else the packed weights depend on.
    """

    def __init__(self, slots: Sequence[Slot], dtype: torch.dtype, key: Hashable, make: Callable[..., Any]) -> None:
        self.dtype, self.key = dtype, key
        present = [(owner, name, owner[name]) for owner, name in slots if owner[name] is not None]
        self.device: torch.device = present[0][2].device
        self.index = present[0][2].get_device()  # -1 on the CPU
        # On CUDA there is one layout.
        self.active_isa = _isa_function() if self.index < 0 else None
        self.isa = None if self.active_isa is None else self.active_isa()
        self.captured = capturing(self.device)  # then it is the graph's, and holds nothing before the first replay
        self.absent = tuple((owner, name) for owner, name in slots if owner[name] is None)
        # It hears of steps, and the versions are read, before the packing. If another thread changes a tensor
        # meanwhile, the next call sees that.
        self.stepped, self.untold_steps = False, _untold_steps
        self.storages = frozenset(t.untyped_storage().data_ptr() for _, _, t in present)
        with _live_lock:
            _live.add(self)
        # ``p.data = p.data.t()`` is another tensor at the same address.
        self.sources = tuple(
            (o, n, t, t._version, t.data_ptr(), t.shape, t.stride(), t.dtype)
            for o, n, t in present
            if not t.is_inference()
        )
        # Kept alive, so that nothing that replaces them (``p.data = other``) can get their addresses.
        self.twins = [_twin(owner[name]) for owner, name in slots]
        pairs = [(*slot, twin) for slot, twin in zip(slots, self.twins, strict=True) if twin is not None]
        self.uncounted = tuple((o, n, o[n], twin) for o, n, twin in pairs if o[n].is_inference())
        self.value: Any = make(self.twins)
        if not self.captured:
            finish(self.device)

    def is_stepped(self) -> bool:
        """Has an optimizer written to the memory of these tensors, or may it have?"""
        return self.stepped or self.untold_steps != _untold_steps

    def is_of_isa(self) -> bool:
        """Is the ISA in force that of the packing?"""
        return self.active_isa is None or self.active_isa() == self.isa

    def is_current(self, dtype: torch.dtype, index: int, key: Hashable) -> bool:
        """Would packing again, for inputs on device ``index``, give the same?"""
        if self.is_stepped() or dtype is not self.dtype or index != self.index:
            return False
        try:
            for owner, name, tensor, version, pointer, shape, strides, kind in self.sources:
                if owner[name] is not tensor or tensor._version != version or tensor.data_ptr() != pointer:
                    return False
                if tensor.shape != shape or tensor.stride() != strides or tensor.dtype is not kind:
                    return False
            for owner, name, tensor, copy in self.uncounted:
                if owner[name] is not tensor or tensor.dtype is not copy.dtype or not torch.equal(tensor, copy):
                    return False
            for owner, name in self.absent:
                if owner[name] is not None:
                    return False
        except KeyError:  # parametrized since
            return False
        return key == self.key and self.is_of_isa()


class PacksWeights(nn.Module):
    """A module that keeps its parameters packed; mix it in before torch's class.

    Any number of threads may call it at once. The packed weights lie in a plain attribute, not in a buffer: buffers
    that come and go would end up in every `torch.export`, and would shift what pairs the buffers of two models. Copies,
    pickles and state_dicts do not contain them; `.to()` and training drop them.

    A class says what it packs (`_slots`), what else the result depends on (`_key`) and how it packs (`_make`).
    """

    _pack: Any = None
    #: The largest weights, in bytes, made in inference mode that are packed, and compared at every call.
    _most_compared = 1 << 16

    def repack(self) -> None:
        """Forgets the packed weights; the next call packs them again."""
        self._pack = None

    def _slots(self) -> Sequence[Slot]:
        raise NotImplementedError

    def _key(self) -> Hashable:
        return None

    def _make(self, tensors: list[Any], dtype: torch.dtype) -> Any:
        raise NotImplementedError

    def _new_pack(self, slots: Sequence[Slot], dtype: torch.dtype, key: Hashable) -> Pack | None:
        return Pack(slots, dtype, key, lambda tensors: self._make(tensors, dtype))

    def _wants_gradients(self) -> bool:
        return any(p is not None and p.requires_grad for p in self._parameters.values())

    def _current_pack(self, op: Op, inputs: Sequence[Tensor | None], packed_as: torch.dtype | None = None) -> Any:
        """The packed parameters for ``inputs``, whose first one says the dtype and the device; packs them if necessary.

        They are packed in ``packed_as``. If that is None they are packed in the dtype of the inputs, which must then be
        the parameters' too, unless autocast casts them. The result is None where the plain op has to run: someone wants
        a gradient, a tracer observes the call, the kernels do not take these tensors, or nobody can watch the
        parameters, which are computed.
        """
        if not undisturbed() or _native.error is not None:
            return None
        first: Any = inputs[0]
        if type(first) not in _PLAIN:
            return None
        index, on_cpu = first.get_device(), first.is_cpu
        if not on_cpu and not first.is_cuda:
            return None
        for t in inputs:
            if t is first or t is None:
                continue
            if type(t) not in _PLAIN or t.is_cpu is not on_cpu or t.get_device() != index:
                return None
        kind = "cpu" if on_cpu else "cuda"
        asked = asked_backend()
        if asked != "auto" and asked != kind:
            return None
        if torch.is_grad_enabled() and (
            any(t is not None and t.requires_grad for t in inputs) or self._wants_gradients()
        ):
            return None
        dtype, autocast = first.dtype, False
        if _any_autocast():
            to = autocast_dtype(first)
            if to is not None and dtype.is_floating_point:
                dtype, autocast = to, True
        # Published in one assignment. Threads that meet here may each make one; any will do.
        pack, key = self._pack, self._key()
        if pack is not None and pack.is_current(packed_as or dtype, index, key):
            return pack if packed_as is None or dtype in op.takes(kind) else None
        if dtype not in op.takes(kind) or not _dispatch.has_native(op, first.device):
            return None
        slots = self._slots()
        try:
            tensors = [owner[name] for owner, name in slots]
        except KeyError:  # parametrized: computed at every call
            return None
        # All of them may be None, except the weight.
        if not all((t is None and i > 0) or (plain(t) and t.get_device() == index) for i, t in enumerate(tensors)):
            return None
        if tensors[0].numel() == 0:
            return None
        uncounted = sum(t.nbytes for t in tensors if t is not None and t.is_inference())
        if uncounted > (self._most_compared if on_cpu else 0):
            return None
        if not autocast and packed_as is None and not self._takes(tensors, dtype):
            return None
        with torch.inference_mode(False), torch.no_grad():
            pack = self._new_pack(slots, packed_as or dtype, key)
        if pack is not None and not pack.captured:
            self._pack = pack
        return pack

    def _takes(self, tensors: list[Any], dtype: torch.dtype) -> bool:
        return all(t is None or t.dtype is dtype for t in tensors)

    def _after_failure(self, pack: Pack, problem: RuntimeError, plain_op: Callable[..., Any], *args: Any) -> Any:
        """What to return after the packed kernel's ``problem``: raises it, unless the ISA has just changed.

        It asks the plain op first, because that raises its own words where an argument is wrong.
        """
        result = plain_op(*args)
        if pack.is_of_isa():
            raise problem
        self._pack = None
        return result

    def train(self, mode: bool = True) -> Any:
        """Sets the mode, as `torch.nn.Module.train` does. Training mode drops the packed weights."""
        if mode:
            self._pack = None
        return super().train(mode)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        self._pack = None
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict[str, Any]:
        above = getattr(super(), "__getstate__", None)  # RNNBase has one; object has one from Python 3.11 on
        return {**(above() if callable(above) else self.__dict__), "_pack": None}
