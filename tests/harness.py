"""check_op: one sample of one op on one backend, ISA and dtype, against the float64 reference."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pykernels import _native
from pykernels._measure import relative_l2
from pykernels._native import _cuda
from pykernels.ops._check import (
    compare,
    forced_isa,
    host_isas,
    inputs_of,
    map_tensors,
    tensors_of,
    to_double,
)
from pykernels.ops._dispatch import triton_missing
from pykernels.ops._spec import OpSpec, Sample

__all__ = [
    "CUDA_GATE",
    "check_op",
    "cuda_build",
    "cuda_reason",
    "eight_threads",
    "forced_isa",
    "host_isas",
    "inputs_of",
    "map_tensors",
    "needs_cuda",
    "needs_triton",
    "relative_l2",
    "tensors_of",
    "to_double",
    "triton_reason",
]

#: Where `make cuda` puts the CUDA libraries.
CUDA_GATE = Path(__file__).parent.parent / "build/cuda/native"


@functools.cache
def cuda_reason() -> str | None:
    """Why the CUDA kernels cannot be run here; None if they can."""
    return _native.why_not("cuda", torch.device("cuda"))


@functools.cache
def triton_reason() -> str | None:
    """Why Triton's kernels can be run here neither on a GPU nor interpreted; None if they can."""
    return triton_missing(torch.device("cuda" if torch.cuda.is_available() else "cpu"))


def cuda_build() -> dict[str, str] | None:
    """What the CUDA kernels were compiled for: those of the package, or those of `make cuda`."""
    return _cuda.build() or _cuda.build(CUDA_GATE / _cuda.KERNELS.name)


def needs_cuda(function):
    """Marks a test that runs CUDA kernels on a GPU."""
    reason = cuda_reason()
    return pytest.mark.cuda(pytest.mark.skipif(reason is not None, reason=f"needs a GPU: {reason}")(function))


def needs_triton(function):
    """Marks a test that runs Triton kernels, on a GPU or interpreted."""
    reason = triton_reason()
    return pytest.mark.triton(pytest.mark.skipif(reason is not None, reason=f"needs Triton: {reason}")(function))


def eight_threads(work: Callable[[int], object]) -> None:
    """Calls ``work(0)`` to ``work(7)`` at once, each in a thread; raises the first thing that one of them raised."""
    start, raised = threading.Barrier(8), []

    def run(i: int) -> None:
        try:
            start.wait()
            work(i)
        except BaseException as problem:
            raised.append(problem)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if raised:
        raise raised[0]


def check_op(spec: OpSpec, sample: Sample, backend: str, dtype: torch.dtype) -> float:
    """Runs the sample and asserts dtype, shape and tolerance of every output; returns the worst relative L2 error."""
    outcome = compare(spec, sample, backend, dtype)
    assert outcome.problem is None, f"{spec.name}[{sample.name}] {backend} {dtype}: {outcome.problem}"
    return outcome.error
