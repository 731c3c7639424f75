"""Triton's kernels over the spec's samples: interpreted on the CPU where there is no GPU (tests/conftest.py)."""

from __future__ import annotations

import pytest

from pykernels.ops._spec import all_specs
from tests.harness import check_op, needs_triton

CASES = [
    pytest.param(spec, sample, dtype, id=f"{spec.name}-{sample.name}-{str(dtype)[6:]}")
    for spec in all_specs()
    if spec.op.backends["triton"] is None
    for sample in spec.samples
    if not sample.bench
    for dtype in spec.op.takes("triton")
]


@needs_triton
@pytest.mark.parametrize(("spec", "sample", "dtype"), CASES)
def test_triton_kernels(spec, sample, dtype):
    check_op(spec, sample, "triton", dtype)
