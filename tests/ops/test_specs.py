"""Every op x backend x ISA x dtype over the spec's samples."""

from __future__ import annotations

import pytest
import torch

from pykernels.ops._spec import all_specs
from tests.harness import cases_on, check_op, forced_isa, host_isas, inputs_of, needs_cuda, samples_of, tensors_of


@pytest.mark.parametrize(("spec", "sample", "dtype", "isa"), cases_on("cpu", *host_isas()))
def test_cpu_kernels(spec, sample, dtype, isa):
    with forced_isa(isa):
        check_op(spec, sample, "cpu", dtype)


@needs_cuda
@pytest.mark.parametrize(("spec", "sample", "dtype"), cases_on("cuda"))
def test_cuda_kernels(spec, sample, dtype):
    check_op(spec, sample, "cuda", dtype)


@pytest.mark.parametrize(
    ("spec", "sample"),
    [pytest.param(s, x, id=f"{s.name}-{x.name}") for s in all_specs() for x in samples_of(s).values()],
)
def test_float64_gets_the_reference_in_auto_and_no_kernel(spec, sample):
    check_op(spec, sample, "auto", torch.float64)
    args, kwargs = inputs_of(sample, torch.float64)
    if any(t.dtype == torch.float64 for t in tensors_of((args, kwargs))):
        why = f"{spec.name}: backend='cpu' cannot run: (its kernels|it has kernels for GPUs only)"
        with torch.no_grad(), pytest.raises(RuntimeError, match=why):
            spec.function(*args, **kwargs, backend="cpu")


@pytest.mark.parametrize(
    ("spec", "sample"),
    [pytest.param(s, x, id=f"{s.name}-{x.name}") for s in all_specs() for x in samples_of(s).values()],
)
def test_the_reference_is_as_exact_as_the_kernels(spec, sample):
    """`pykernels check` holds it to the same tolerance."""
    check_op(spec, sample, "reference", torch.float32)
