"""Triton's kernels over the spec's samples: interpreted on the CPU where there is no GPU (tests/conftest.py)."""

from __future__ import annotations

import pytest
import torch

from pykernels.ops._dispatch import kernels
from pykernels.ops._flops import FORMULAS
from pykernels.ops._spec import all_specs
from tests.harness import cases_on, check_op, native, needs_triton


@needs_triton
@pytest.mark.parametrize(("spec", "sample", "dtype"), cases_on("triton"))
def test_triton_kernels(spec, sample, dtype):
    check_op(spec, sample, "triton", dtype)


@native
@needs_triton
def test_an_op_and_its_twin_take_the_same_arguments():
    for spec in all_specs():
        if spec.op.backends["triton"] is None:
            kernels("triton", spec.op)
    twins = [name for name in FORMULAS if hasattr(torch.ops.pykernels, f"{name}_triton")]
    assert {"conv_bn_act", "int8_conv2d", "batch_norm_act", "lstm", "int8_matmul"} <= set(twins)
    for name in twins:
        ours, theirs = (
            [(a.name, str(a.type), a.default_value) for a in getattr(torch.ops.pykernels, op).default._schema.arguments]
            for op in (name, f"{name}_triton")
        )
        assert ours == theirs
