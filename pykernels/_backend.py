"""Which implementation runs an op: asked for per call or per block, or chosen."""

from __future__ import annotations

import contextvars
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch.autograd import forward_ad

from pykernels import _native

if TYPE_CHECKING:
    from pykernels.ops._spec import OpSpec

BACKENDS = ("auto", "cpu", "cuda", "triton", "reference")

_asked: contextvars.ContextVar[str] = contextvars.ContextVar("pykernels_backend", default="auto")
_log = logging.getLogger("pykernels")
_told: set[str] = set()


def check_backend(name: str) -> str:
    if name not in BACKENDS:
        raise ValueError(f"pykernels: backend: expected one of {', '.join(BACKENDS)}; got {name!r}")
    return name


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Run every op inside the block on one backend.

    ``"auto"`` takes the kernels of the tensors' device and falls back to the reference, saying so once in the log.
    Any other name is explicit: an op that cannot run there raises and says why.

    A compiled function keeps the backend that was in force when it was traced. The block is of the thread (and task)
    that entered it: threads started inside begin with ``"auto"``, unless they are run in a copy of its context.

    >>> with pk.backend("reference"):
    ...     y = pk.ops.conv_bn_act(x, weight)
    """
    token = _asked.set(check_backend(name))
    try:
        yield
    finally:
        _asked.reset(token)


def _current() -> str:
    return _asked.get()


# torch.compiler.assume_constant_result does the same, and imports torch._dynamo for it: ten times what we take.
_current._dynamo_marked_constant = True  # type: ignore[attr-defined]


def choose(spec: OpSpec, device: torch.device, dtype: torch.dtype, asked: str | None = None) -> str:
    """The backend that runs ``spec`` for tensors of ``device`` and ``dtype``: ``"cpu"``, ``"cuda"`` or ``"reference"``.

    Raises:
        ValueError: ``asked`` names no backend.
        RuntimeError: an explicit backend cannot run; the message says why.
    """
    asked = _current() if asked is None else check_backend(asked)
    if asked == "reference":
        return asked
    wanted = device.type if asked == "auto" else asked
    reason = _why_not(spec, wanted, device, dtype)
    if reason is None:
        return wanted
    if asked == "auto":
        _tell_once(f"{spec.name}: {reason}; using the reference")
        return "reference"
    raise RuntimeError(f"pykernels.{spec.name}: backend={asked!r} cannot run: {reason}")


def _why_not(spec: OpSpec, wanted: str, device: torch.device, dtype: torch.dtype) -> str | None:
    if wanted not in BACKENDS:
        return f"there are no kernels for device type {wanted!r}"
    if spec.backends.get(wanted) is not None:
        return spec.backends[wanted]
    if device.type != wanted:
        return f"its tensors are on {device.type!r}"
    if dtype not in spec.takes(wanted):
        return f"its kernels take {', '.join(map(str, spec.takes(wanted)))}, not {dtype}"
    if is_transformed():
        return "torch.func's transforms and forward-mode differentiation can follow plain PyTorch only"
    return _native.why_not(wanted, device)


def why_no_kernels(spec: OpSpec, device: torch.device) -> str | None:
    """Why there are no kernels for ``spec`` that run on ``device``, whatever the dtype; None where there are."""
    if device.type not in BACKENDS:
        return f"there are no kernels for device type {device.type!r}"
    return spec.backends[device.type] or _native.why_not(device.type, device)


def has_kernels(spec: OpSpec, device: torch.device) -> bool:
    """Are there kernels for ``spec`` that run on ``device``?"""
    return why_no_kernels(spec, device) is None


def is_transformed() -> bool:
    """Inside torch.func's grad, vmap and their like, or forward-mode differentiation?"""
    if torch.compiler.is_compiling():
        return False
    return torch._C._functorch.peek_interpreter_stack() is not None or forward_ad._current_level >= 0


def _tell_once(message: str) -> None:
    if torch.compiler.is_compiling() or message in _told:
        return
    _told.add(message)
    _log.warning(message)
