"""Weights in a kernel's own layout: made once, kept beside the module's parameters, remade when those change.

A change is: another tensor in a parameter's place, an in-place write (optimizer step, load_state_dict: torch counts a
version), other memory under the same parameter (``p.data = ...``, ``.to()``), or another ISA in force. A write through
``p.data`` alone is invisible to torch's version counter and so to this: call ``module.train()`` or `forget` after one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pykernels import _native

_BUFFER = "packed_weights"
_making = threading.Lock()


class _Source(NamedTuple):
    #: The module's dict of parameters or of buffers, and the key in it.
    owner: Mapping[str, Tensor | None]
    name: str
    tensor: Tensor
    version: int
    pointer: int
    #: Holds the memory, so that no other weight can come to lie at the same address unseen.
    alias: Tensor


class _Packed(NamedTuple):
    """Replaced as a whole, never changed: a thread sees the old one or the new one."""

    tensor: Tensor
    isa: str
    #: The dtype asked for; None is that of the weights.
    dtype: torch.dtype | None
    sources: tuple[_Source, ...]


def _no_isa() -> str:
    raise RuntimeError(f"pykernels: {_native.error}")


_active_isa: Callable[[], str] = _no_isa if _native.error is not None else _native.introspect().active_isa


class PacksWeights(nn.Module):
    """A module that keeps a packed copy of its weights, as a non-persistent buffer; mix it in before torch's class.

    Thread-safe. Copying and pickling leave the packed copy behind; `.to()` and `train()` drop it.
    """

    _packed: _Packed | None = None

    def packed(
        self, names: Sequence[str], make: Callable[[list[Tensor]], Tensor], dtype: torch.dtype | None = None
    ) -> Tensor | None:
        """``make([parameters and buffers, in the order of names])``, remade if one has changed since the last call.

        With ``dtype`` they are cast to it first. None if they cannot be watched: one is computed (parametrized, pruned,
        swapped by functional_call) or an inference tensor. Only for where no gradient is wanted.
        """
        packed = self._packed
        if packed is not None and self._is_fresh(packed, dtype):
            return packed.tensor
        with _making:
            packed = self._packed
            if packed is None or not self._is_fresh(packed, dtype):
                packed = self._make(names, make, dtype)
        return None if packed is None else packed.tensor

    def forget(self) -> None:
        """Drop the packed copy; the next call that wants one makes it again."""
        self._packed = None
        if _BUFFER in self._buffers:
            self._buffers[_BUFFER] = None

    def _is_fresh(self, packed: _Packed, dtype: torch.dtype | None) -> bool:
        for owner, name, tensor, version, pointer, _ in packed.sources:
            if owner.get(name) is not tensor or tensor._version != version or tensor.data_ptr() != pointer:
                return False
        return packed.dtype is dtype and packed.isa == _active_isa()

    def _make(
        self, names: Sequence[str], make: Callable[[list[Tensor]], Tensor], dtype: torch.dtype | None
    ) -> _Packed | None:
        sources, isa = [], _active_isa()
        with torch.inference_mode(False), torch.no_grad():
            for name in names:
                owner, kind = (self._parameters, nn.Parameter) if name in self._parameters else (self._buffers, Tensor)
                tensor = owner.get(name)
                if type(tensor) is not kind or tensor.is_inference():
                    return None
                sources.append(_Source(owner, name, tensor, tensor._version, tensor.data_ptr(), tensor.detach()))
            packed = make([source.alias if dtype is None else source.alias.to(dtype) for source in sources])
        if _BUFFER not in self._buffers:
            self.register_buffer(_BUFFER, None, persistent=False)
        self._buffers[_BUFFER] = packed
        self._packed = _Packed(packed, isa, dtype, tuple(sources))
        return self._packed

    def train(self, mode: bool = True) -> Any:
        """As nn.Module's; training drops the packed copy, which the first optimizer step would outdate."""
        if mode:
            self.forget()
        return super().train(mode)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        self.forget()
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict[str, Any]:
        parent = getattr(super(), "__getstate__", None)
        state = dict(parent() if callable(parent) else self.__dict__)
        state["_packed"] = None
        state["_buffers"] = {**state["_buffers"], **({_BUFFER: None} if _BUFFER in state["_buffers"] else {})}
        return state
