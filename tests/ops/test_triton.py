"""Triton's kernels over the spec's samples: interpreted on the CPU where there is no GPU (tests/conftest.py)."""

from __future__ import annotations

import pytest

from tests.harness import cases_on, check_op, needs_triton


@needs_triton
@pytest.mark.parametrize(("spec", "sample", "dtype"), cases_on("triton"))
def test_triton_kernels(spec, sample, dtype):
    check_op(spec, sample, "triton", dtype)
