"""Every op x backend x ISA x dtype over the spec's samples."""

from __future__ import annotations

import pytest
import torch

from pykernels.ops._spec import all_specs
from tests.harness import check_op, forced_isa, host_isas, inputs_of, needs_cuda, tensors_of

CASES = [
    pytest.param(spec, sample, dtype, isa, id=f"{spec.name}-{sample.name}-{str(dtype)[6:]}-{isa}")
    for spec in all_specs()
    if spec.op.backends["cpu"] is None
    for sample in spec.samples
    if not sample.bench
    for dtype in spec.op.takes("cpu")
    for isa in host_isas()
]


@pytest.mark.parametrize(("spec", "sample", "dtype", "isa"), CASES)
def test_cpu_kernels(spec, sample, dtype, isa):
    with forced_isa(isa):
        check_op(spec, sample, "cpu", dtype)


CUDA_CASES = [
    pytest.param(spec, sample, dtype, id=f"{spec.name}-{sample.name}-{str(dtype)[6:]}")
    for spec in all_specs()
    if spec.op.backends["cuda"] is None
    for sample in spec.samples
    if not sample.bench
    for dtype in spec.op.takes("cuda")
]


@needs_cuda
@pytest.mark.parametrize(("spec", "sample", "dtype"), CUDA_CASES)
def test_cuda_kernels(spec, sample, dtype):
    check_op(spec, sample, "cuda", dtype)


@pytest.mark.parametrize(
    ("spec", "sample"),
    [pytest.param(s, x, id=f"{s.name}-{x.name}") for s in all_specs() for x in s.samples if not x.bench],
)
def test_float64_gets_the_reference_in_auto_and_no_kernel(spec, sample):
    check_op(spec, sample, "auto", torch.float64)
    args, kwargs = inputs_of(sample, torch.float64)
    if any(t.dtype == torch.float64 for t in tensors_of((args, kwargs))):
        with torch.no_grad(), pytest.raises(RuntimeError, match=rf"{spec.name}: backend='cpu' cannot run: its kernels"):
            spec.function(*args, **kwargs, backend="cpu")
