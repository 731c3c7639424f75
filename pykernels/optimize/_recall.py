"""The last calls of a stub, each with all that must hold for the next call to be the same.

To find a program and to ask whether it still holds takes fifteen microseconds of Python, longer than many a small
model. So a stub keeps what it found as a `KnownCall`. The native `recall` goes through these: it compares the
arguments, torch's modes, what is watched and the sources, and calls the program's function. If anything differs, `Stub`
itself answers.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from pykernels import _native
from pykernels.nn import _packed
from pykernels.optimize._record import state
from pykernels.optimize._sources import Sources

#: The most calls that a stub remembers. To look through more would be in vain where sizes change at every call.
MOST = 4


class KnownSources(NamedTuple):
    """What a program's constants were made of; the fields are known to csrc/python/recall.cpp."""

    #: The names of `pykernels.nn._packed`, and what ``steps`` was there.
    counters: dict[str, Any]
    steps: int
    tensors: tuple[Tensor, ...]
    versions: tuple[int, ...]
    note: int
    isa: str | None


class KnownCall(NamedTuple):
    """A call and its program; the fields, up to `program`, are known to csrc/python/recall.cpp."""

    modes: tuple[Any, ...]
    args: Hashable
    kwargs: Hashable
    watched: tuple[Any, ...]
    sources: KnownSources | None
    #: Tensors of the model that must not require gradients: where those are recorded.
    weights: tuple[Tensor, ...]
    run: Callable[..., Any]
    constants: tuple[Any, ...]
    program: Any
    #: The program's own constants, to recognise an outdated entry.
    bound: Any


def known_sources(sources: Sources) -> KnownSources | None:
    """What the native comparison needs of ``sources``; None where they are stale, or some have to be compared whole."""
    steps = _packed.steps  # before the question: a step says what it wrote to, and then counts
    if sources.uncounted or sources.is_stepped():
        return None
    counted, versions = tuple(sources.counted), tuple(sources.versions)
    return KnownSources(vars(_packed), steps, counted, versions, sources.note, sources.isa)


#: What torch's modes and the stub's state have to be, to the very object: functions and their results.
_STILL: tuple[Any, ...] = (
    *(torch._C._len_torch_dispatch_stack, 0),
    *(torch._C._functorch.peek_interpreter_stack, None),
    *(torch._C._get_tracing_state, None),
    *(partial(getattr, forward_ad, "_current_level"), -1),
    *(torch._C._len_torch_function_stack, 0),
    *(torch._C._is_any_autocast_enabled, False),
    *(_packed.asked_backend, "auto"),
    *(partial(getattr, state, "recorder"), None),
)
#: Those that an entry names its own results of.
MODES = torch.is_grad_enabled, torch.is_inference_mode_enabled, torch.get_default_dtype
CONTEXT = _STILL, MODES


def _never(context: Any, known: Any, ran: Any, args: Any, kwargs: Any) -> Any:
    return MISS


recall: Callable[[Any, Any, list[Any], Any, Any], Any]
if _native.error is None:
    recall, MISS = _native.guard().recall, _native.guard().MISS
else:
    recall, MISS = _never, object()
