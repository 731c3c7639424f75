"""The tensors that a program's constants were made of, and whether they are as they were."""

from __future__ import annotations

import functools
import threading
import weakref
from collections.abc import Callable, Sequence
from operator import attrgetter

import torch
from torch import Tensor

from pykernels import _native
from pykernels.nn import _packed
from pykernels.nn._packed import Pack
from pykernels.optimize._keep import PackedWeight, check_whole

_version_of = attrgetter("_version")


@functools.cache
def _follow_swaps() -> None:
    """Has torch's ``swap_tensors``, which refuses tensors that a note has a hold of, let go of them first."""
    swap: Callable[..., None] = torch.utils.swap_tensors

    @functools.wraps(swap)
    def swap_tensors(t1: Tensor, t2: Tensor) -> None:
        check_whole((t for t in (t1, t2) if type(t) is PackedWeight), "swap_tensors")
        with _adding:
            live = list(_live)
        for sources in live:
            if not sources.ids.isdisjoint((id(t1), id(t2))):
                sources.stepped = True
                _packed.steps += 1
                _native.guard().forget_note(sources.note)
        swap(t1, t2)

    # `nn.Module` looks the function up here where torch is set to swap tensors.
    torch.utils.swap_tensors = swap_tensors


_live: weakref.WeakSet[Sources] = weakref.WeakSet()
_adding = threading.Lock()


class Sources(Pack):
    """A `Pack` of nothing, which hears of optimizers' steps and is quick to compare hundreds of tensors."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        super().__init__([({"": t}, "") for t in tensors], torch.float32, None, lambda tensors: None)
        self.counted = [source[2] for source in self.sources]
        self.versions = [source[3] for source in self.sources]
        _follow_swaps()
        self.note = torch.ops.pykernels.note_tensors(self.counted)
        self.ids = frozenset(map(id, self.counted))
        with _adding:
            _live.add(self)
        self.as_noted = torch.ops.pykernels.are_as_noted.default
        weakref.finalize(self, _native.guard().forget_note, self.note).atexit = False
        # What changed between the two looks at it is seen here: the note may be of the later tensor.
        self.stepped |= not super().is_current(self.dtype, self.index, None)

    def are_current(self) -> bool:
        """Whether they, their memory and the ISA are as they were."""
        if self.is_stepped() or list(map(_version_of, self.counted)) != self.versions or not self.as_noted(self.note):
            return False
        return self.is_of_isa() and all(torch.equal(tensor, copy) for _, _, tensor, copy in self.uncounted)
