"""Chooses the implementation that runs an op, unless the caller or an enclosing block names one."""

from __future__ import annotations

import contextvars
import functools
import importlib
import importlib.util
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch.autograd import forward_ad

from pykernels import _native
from pykernels.ops import _flops
from pykernels.ops._arguments import check_choice

if TYPE_CHECKING:
    from pykernels.ops._op import Op

BACKENDS = ("auto", "cpu", "cuda", "triton", "reference")

_asked: contextvars.ContextVar[str] = contextvars.ContextVar("pykernels_backend", default="auto")
_log = logging.getLogger("pykernels")
_told: set[str] = set()


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Runs every op inside the block on one backend.

    >>> with pk.backend("reference"):
    ...     y = pk.ops.conv_bn_act(x, weight)

    Args:
        name: ``"auto"``, the default outside of any block, takes the kernels of the tensors' device. Where they cannot
            run, it takes the reference and logs that once. ``"cpu"``, ``"cuda"``, ``"triton"`` and ``"reference"``
            (plain PyTorch) are explicit: an op that cannot run there raises an error and says why.

    A compiled function keeps the backend that was in force when torch traced it. The block holds for the thread (and
    task) that entered it: threads started inside begin with ``"auto"``, unless they run in a copy of its context.

    Raises:
        ValueError: ``name`` is none of these.
    """
    check_choice("backend", "name", name, BACKENDS)
    token = _asked.set(name)
    try:
        yield
    finally:
        _asked.reset(token)


def asked_backend() -> str:
    """The `backend` in force: ``"auto"``, or the name of the innermost block."""
    return _asked.get()


# torch.compiler.assume_constant_result does the same, and imports torch._dynamo for it: ten times what we take.
asked_backend._dynamo_marked_constant = True  # type: ignore[attr-defined]


def choose(op: Op, device: torch.device, dtype: torch.dtype, asked: str | None = None, caller: str = "") -> str:
    """The backend that runs ``op`` for tensors of ``device`` and ``dtype``: any of `BACKENDS` except ``"auto"``.

    ``caller`` is the public function whose ``backend`` the user set, if it has another name than ``op``.

    Raises:
        ValueError: ``asked`` is not a backend.
        RuntimeError: An explicit backend cannot run; the message says why.
    """
    if asked is None:
        asked = asked_backend()
    else:
        check_choice(caller or op.name, "backend", asked, BACKENDS)
    if asked == "reference" or (asked == "auto" and is_for_onnx()):
        return "reference"
    wanted = device.type if asked == "auto" else asked
    reason = _why_not(op, wanted, device, dtype)
    if reason is None:
        return wanted
    if asked != "auto":
        raise RuntimeError(f"pykernels.{op.name}: backend={asked!r} cannot run: {reason}")
    # On a GPU, Triton's kernels stand in where CUDA's are not built.
    if wanted == "cuda" and _why_not(op, "triton", device, dtype) is None:
        _tell_once(op, f"{reason}; using Triton")
        return "triton"
    _tell_once(op, f"{reason}; using the reference, plain PyTorch")
    return "reference"


def _why_not(op: Op, wanted: str, device: torch.device, dtype: torch.dtype) -> str | None:
    if wanted not in BACKENDS:
        return f"there are no kernels for device type {wanted!r}"
    if op.backends.get(wanted) is not None:
        return op.backends[wanted]
    missing = triton_missing(device) if wanted == "triton" else None
    if missing is not None:
        return missing
    if wanted not in (device.type, "triton"):
        return f"its tensors are on {device.type!r}"
    if dtype not in op.takes(wanted):
        return f"its kernels take {', '.join(map(str, op.takes(wanted)))}, not {dtype}"
    if is_transformed():
        return "torch.func's transforms and forward-mode differentiation can follow plain PyTorch only"
    return None if wanted == "triton" else _native.why_not(wanted, device)


def triton_missing(device: torch.device) -> str | None:
    """Why Triton's kernels cannot run on ``device``; None if they can, and then Triton has been imported."""
    if not _has_triton():
        return "Triton is not installed; `pip install triton` brings it"
    if device.type != "cuda" and not (device.type == "cpu" and _interprets()):
        return f"on {device.type!r} Triton's kernels run only under TRITON_INTERPRET=1, interpreted"
    return _triton_error() or (_too_old(device.index) if device.type == "cuda" else _too_late())


def _has_triton() -> bool:
    try:
        return importlib.util.find_spec("triton") is not None
    except Exception:  # a finder of a broken installation; importing it will tell
        return True


def _interprets() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


def _triton_error() -> str | None:
    return _import_triton()


def _too_old(index: int | None) -> str | None:
    """Triton and its tiles are for NVIDIA's GPUs from Ampere on. On an older one a kernel fails in the middle."""
    major, minor = _capability(index)
    return None if major >= 8 else f"Triton's kernels need sm_80 (Ampere) or later; this GPU is sm_{major}{minor}"


@functools.cache
def _capability(index: int | None) -> tuple[int, int]:
    """The compute capability of an NVIDIA GPU; for any other one, and for a fake tensor's, one that is new enough."""
    if torch.version.cuda is None or not torch.cuda.is_available():
        return 8, 0
    return torch.cuda.get_device_capability(index)


def _too_late() -> str | None:
    from pykernels.ops import _triton

    if _triton.INTERPRETED and not _triton.SWITCHED_LATE:
        return None
    return "TRITON_INTERPRET=1 was set after Triton had been imported; set it before the program starts"


# As `asked_backend`: constants of a trace.
_has_triton._dynamo_marked_constant = True  # type: ignore[attr-defined]
_interprets._dynamo_marked_constant = True  # type: ignore[attr-defined]
_triton_error._dynamo_marked_constant = True  # type: ignore[attr-defined]
_too_old._dynamo_marked_constant = True  # type: ignore[attr-defined]
_too_late._dynamo_marked_constant = True  # type: ignore[attr-defined]


@functools.cache
def _import_triton() -> str | None:
    try:
        importlib.import_module("pykernels.ops._triton")
    except Exception as problem:  # whatever a broken installation raises
        return f"Triton cannot be imported ({type(problem).__name__}: {problem}); reinstall triton"
    return None


def kernels(where: str, op: Op) -> Any:
    """The namespace of the native ops of ``op``'s family: ``torch.ops.pykernels``, or, for Triton, its twin.

    Triton's ops are registered as ``pykernels::<op>_triton`` when the family's module is imported, at its first use. So
    ``import pykernels`` imports no Triton.
    """
    if where != "triton":
        return torch.ops.pykernels
    _load(op.triton)
    return _TRITON_OPS


class _TritonOps:
    def __getattr__(self, op: str) -> Any:
        return getattr(torch.ops.pykernels, f"{op}_triton")


_TRITON_OPS = _TritonOps()


def _load(module: str) -> bool:
    if module not in sys.modules:
        importlib.import_module(module)
        if "torch.utils.flop_counter" in sys.modules:
            _flops.register(sys.modules["torch.utils.flop_counter"])
    return True


_load._dynamo_marked_constant = True  # type: ignore[attr-defined]


def why_no_native(op: Op, device: torch.device) -> str | None:
    """Why no kernels that take packed weights, in C++ or CUDA C++, run ``op`` on ``device``; None where some do."""
    if device.type not in BACKENDS:
        return f"there are no kernels for device type {device.type!r}"
    return op.backends[device.type] or _native.why_not(device.type, device)


def has_native(op: Op, device: torch.device) -> bool:
    """Whether there are kernels in C++ or CUDA C++ for ``op`` that run on ``device``."""
    return why_no_native(op, device) is None


def is_transformed() -> bool:
    """Whether torch.func's grad, vmap and their like, or forward-mode differentiation, are active."""
    if torch.compiler.is_compiling():
        return False
    return torch._C._functorch.peek_interpreter_stack() is not None or forward_ad._current_level >= 0


def is_for_onnx() -> bool:
    """Whether `torch.onnx.export` observes the call. It knows torch's own operators only."""
    return torch.compiler.is_exporting() and torch.onnx.is_in_onnx_export()


# By itself Dynamo takes it for False, always.
is_for_onnx._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _tell_once(op: Op, what: str) -> None:
    if torch.compiler.is_compiling():
        return
    message = f"pykernels.{op.name}: {what} (logged once; `python -m pykernels info` shows what runs where)"
    if message not in _told:
        _told.add(message)
        _log.warning(message)
