"""Whether this thread's fused modules are to run as the torch modules that they stand for.

`pykernels.quantize` records models so: it needs to see the convolution, the batch norm and the activation.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class _Local(threading.local):
    is_on = False


_local = _Local()


def is_unfolded() -> bool:
    """Whether this thread runs them so."""
    return _local.is_on


@contextmanager
def unfolded(on: bool = True) -> Iterator[None]:
    """Sets it for a block."""
    before, _local.is_on = _local.is_on, on
    try:
        yield
    finally:
        _local.is_on = before
