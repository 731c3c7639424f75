"""Memory in huge pages, where the system has them: for what a network reads and writes at each call.

A network's weights and intermediates are some thousands of pages of 4 KB. Processors keep the addresses of fewer, and
to look one up takes long, in a virtual machine above all. Linux gives pages of 2 MB to those who ask, as
``on_huge_pages`` does (csrc/torch/huge_pages.h).
"""

from __future__ import annotations

import mmap
import os
import threading

import torch
from torch import Tensor

_PAGE = 2 << 20
_CHUNK = 8 << 20
_ALIGN = 64

_lock = threading.Lock()
_chunk: Tensor | None = None
_used = 0


def _after_fork() -> None:
    """Replaces the lock: the thread that held it at the fork does not exist in the child."""
    global _lock
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_after_fork)


def memory(nbytes: int) -> Tensor:
    """That many bytes, zeros, of their own mapping: they go back to the system with the last tensor in them."""
    mapping = mmap.mmap(-1, nbytes + (_PAGE if nbytes >= _PAGE else 0), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    whole = torch.frombuffer(mapping, dtype=torch.uint8)
    return whole if nbytes < _PAGE else torch.ops.pykernels.on_huge_pages(whole)


def gathered(t: Tensor) -> Tensor:
    """``t``, bytes in one dimension, copied to where others of its kind lie: many small tensors fill a page.

    What fills pages of its own is left where it is: the native library has asked for them (csrc/torch/huge_pages.h).
    """
    global _chunk, _used
    n = t.numel()
    if not 0 < n < _PAGE:
        return t
    with _lock:
        if _chunk is None or _used + n > _CHUNK:
            _chunk, _used = memory(_CHUNK), 0
        place = _chunk[_used : _used + n]
        _used += -(-n // _ALIGN) * _ALIGN
    return place.copy_(t)


def on_huge_pages(t: Tensor) -> Tensor:
    """A contiguous copy of ``t``, which is not empty, there."""
    flat = t.detach().contiguous().view(-1).view(torch.uint8)
    placed = gathered(flat) if flat.numel() < _PAGE else memory(flat.numel()).copy_(flat)
    return placed.view(t.dtype).view(t.shape)
