"""check_op: one sample of one op on one backend, ISA and dtype, against the float64 reference."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from pykernels import _native
from pykernels._measure import relative_l2
from pykernels._native import _cuda
from pykernels.ops._check import compare, forced_isa, host_isas, inputs_of, map_tensors, tensors_of, to_double
from pykernels.ops._dispatch import triton_missing
from pykernels.ops._spec import OpSpec, Sample, all_specs, lay_out

__all__ = [
    "CUDA_GATE",
    "DEVICE",
    "FORMATS",
    "assert_one_graph",
    "assert_threads_change_nothing",
    "cases_on",
    "check_op",
    "cuda_build",
    "cuda_reason",
    "eight_threads",
    "forced_isa",
    "host_isas",
    "inputs_of",
    "leaves",
    "map_tensors",
    "native",
    "needs_cuda",
    "needs_triton",
    "normal",
    "on_cpu_and_triton",
    "relative_l2",
    "samples_of",
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


def assert_threads_change_nothing(call: Callable[[], object], counts: tuple[int, ...]) -> None:
    """The tensors that the call gives have the same bits with so many of torch's threads."""
    before, results = torch.get_num_threads(), []
    try:
        for count in (before, *counts):
            torch.set_num_threads(count)
            results.append(tensors_of(call()))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def assert_one_graph(
    function: Callable, calls: Iterable[tuple[object, ...]], backend: str = "aot_eager", dynamic: bool | None = True
) -> None:
    """The function is compiled whole, and once for all the calls, whose bits are those of the plain function."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend(backend)
    compiled = torch.compile(function, backend=counter, fullgraph=True, dynamic=dynamic)
    for args in calls:
        for got, expected in zip(tensors_of(compiled(*args)), tensors_of(function(*args)), strict=True):
            assert torch.equal(got, expected)
    assert counter.frame_count == 1


native = pytest.mark.skipif(_native.error is not None, reason=str(_native.error))
#: Where Triton's kernels run: on a GPU, or interpreted.
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FORMATS = (torch.contiguous_format, torch.channels_last)


def on_cpu_and_triton(function):
    """The test for each ``backend``, on a ``device`` of its own."""
    triton = (pytest.mark.triton, pytest.mark.skipif(triton_reason() is not None, reason=f"{triton_reason()}"))
    cases = [pytest.param("cpu", "cpu", marks=native), pytest.param("triton", DEVICE, marks=triton)]
    return pytest.mark.parametrize(("backend", "device"), cases, ids=["cpu", "triton"])(function)


def cases_on(backend: str, *last: str) -> list:
    """(spec, sample, dtype) for every small sample of every op that the backend has, and with each of ``last``."""
    return [
        pytest.param(spec, sample, dtype, *more, id="-".join((spec.name, sample.name, str(dtype)[6:], *more)))
        for spec in all_specs()
        if spec.op.backends[backend] is None
        for sample in samples_of(spec).values()
        for dtype in spec.op.takes(backend)
        for more in (zip(last) if last else [()])
    ]


def samples_of(spec: OpSpec) -> dict[str, Sample]:
    """The spec's small samples by name."""
    return {sample.name: sample for sample in spec.samples if not sample.bench}


def normal(*shape: int, seed=0, dtype=torch.float32, layout="contiguous", device="cpu") -> torch.Tensor:
    """Of unit variance, the same at every call; ``layout`` as in `lay_out`, or a memory format."""
    generator = torch.Generator("cpu").manual_seed(seed)
    t = torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu").to(device, dtype)
    return lay_out(t, layout) if isinstance(layout, str) else t.contiguous(memory_format=layout)


def integers(*shape: int, seed=0, layout="contiguous", device="cpu") -> torch.Tensor:
    """Of all 256 int8 numbers, the same at every call; ``layout`` as for `normal`."""
    generator = torch.Generator("cpu").manual_seed(seed)
    t = torch.randint(-128, 128, shape, generator=generator, dtype=torch.int8, device="cpu").to(device)
    return lay_out(t, layout) if isinstance(layout, str) else t.contiguous(memory_format=layout)


def leaves(args, kwargs):
    """Copies that require gradients, and a list of them all."""
    args, kwargs = map_tensors((args, kwargs), lambda t: t.detach().clone().requires_grad_())
    return args, kwargs, tensors_of((args, kwargs))


def check_op(spec: OpSpec, sample: Sample, backend: str, dtype: torch.dtype) -> float:
    """Runs the sample and asserts dtype, shape and tolerance of every output; returns the worst relative L2 error."""
    outcome = compare(spec, sample, backend, dtype)
    assert outcome.problem is None, f"{spec.name}[{sample.name}] {backend} {dtype}: {outcome.problem}"
    return outcome.error


def strided(x):
    """``x`` in all sorts of places."""
    wide = x.new_zeros((*x.shape[:-1], 2 * x.shape[-1] + 3))
    wide[..., 3 : 3 + x.shape[-1]] = x
    yield wide[..., 3 : 3 + x.shape[-1]]
    yield torch.repeat_interleave(x, 2, -1)[..., ::2]
    for a in range(x.dim()):
        for b in range(a):
            yield x.transpose(a, b).contiguous().transpose(a, b)
    yield torch.stack([x, x + 1], 1)[:, 0]
