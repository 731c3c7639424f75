"""int8_matmul and quantize_int8 as citizens of PyTorch: opcheck, compile, export, meta tensors."""

from __future__ import annotations

import pytest
import torch
from torch.library import opcheck

from pykernels.ops.int8_matmul import int8_matmul, quantize_int8
from tests.harness import assert_one_graph, integers, native
from tests.ops.int8_matmul.checks import BACKENDS, OPS, normal


@native
@pytest.mark.parametrize("m", [0, 1, 9])
def test_opcheck(m):
    a, b, x = integers(m, 12), integers(12, 33), normal(m, 12)
    a_scale, b_scale, bias = torch.rand(m), torch.rand(33), torch.rand(33)
    packed = OPS.int8_pack(b)
    opcheck(OPS.int8_matmul, (a, b, None, None, torch.tensor(3, dtype=torch.int32), None, 0, torch.int32))
    leaves = [t.clone().requires_grad_() for t in (a_scale, b_scale, bias)]
    opcheck(OPS.int8_matmul, (a, b.t().contiguous().t(), *leaves[:2], None, leaves[2], 7, torch.float32))
    opcheck(OPS.int8_matmul_packed, (a, packed, 33, a_scale, b_scale, None, bias, 1, torch.bfloat16))
    opcheck(OPS.int8_pack, (b,))
    opcheck(OPS.int8_linear, (x, b, b_scale, bias, 0))
    opcheck(OPS.int8_linear_packed, (x, packed, 33, b_scale, None, 0))
    for axis in (-1, 0, 1):
        opcheck(OPS.quantize_int8, (x, axis, axis != 0))


def composed(x: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    q, scale, zero_point = quantize_int8(x, axis=0, symmetric=False)
    return int8_matmul(q, b, a_scale=scale, a_zero_point=zero_point, out_dtype=torch.float32) + 1


@native
@pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
def test_compiles_whole_and_once_for_all_batches(compiler):
    b = integers(20, 30)
    assert_one_graph(composed, [(normal(m, 20, seed=m), b) for m in (5, 9, 17)], compiler)


@native
def test_exports():
    class Module(torch.nn.Module):
        def forward(self, x, b):
            return composed(x, b)

    x, b = normal(5, 20), integers(20, 30)
    batch = torch.export.Dim("batch", min=2, max=100)
    program = torch.export.export(Module(), (x, b), dynamic_shapes={"x": {0: batch}, "b": None})
    for m in (5, 11):
        x = normal(m, 20, seed=m)
        assert torch.equal(program.module()(x, b), composed(x, b))


@BACKENDS
def test_meta_tensors_have_the_right_shape(backend):
    a, b = integers(5, 6).to("meta"), integers(6, 7).to("meta")
    y = int8_matmul(a, b, backend=backend)
    assert (y.shape, y.dtype, y.device.type) == ((5, 7), torch.int32, "meta")
    q, scale, zero_point = quantize_int8(torch.empty(5, 6, device="meta"), axis=1, backend=backend)
    assert (q.dtype, tuple(scale.shape), zero_point.dtype) == (torch.int8, (6,), torch.int32)
