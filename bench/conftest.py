"""pytest-benchmark for this folder: ``make bench``, or ``python -m pytest bench --benchmark-only``.

Eager and ours share a process and torch's thread pool here, so these figures are for watching a change from one
commit to the next (``--benchmark-autosave``, ``--benchmark-compare``). For the engines there is
``python -m pykernels bench peers``.
"""

from __future__ import annotations

import os

import pytest
import torch


@pytest.fixture(autouse=True)
def _threads() -> None:
    """One thread, unless PYKERNELS_BENCH_THREADS says otherwise."""
    torch.set_num_threads(int(os.environ.get("PYKERNELS_BENCH_THREADS", "1")))
