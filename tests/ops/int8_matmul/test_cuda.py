"""The packed weights of CUDA: their size, by tracing; their products, where there is a GPU."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from pykernels.ops._activation import ACTIVATIONS
from pykernels.ops.int8_matmul import int8_linear, int8_matmul, quantize_int8
from tests.harness import integers, native, needs_cuda
from tests.ops.int8_matmul.checks import OPS, normal


@native
@pytest.mark.parametrize(("k", "n", "expected"), [(64, 48, 48 * 68), (70, 33, 33 * 100 + 6), (0, 5, 20), (9, 0, 9)])
def test_the_packed_form_on_cuda_tells_k_by_its_size(k, n, expected):
    with FakeTensorMode(allow_non_fake_inputs=True):
        b = torch.empty(k, n, dtype=torch.int8, device="cuda")
        packed = OPS.int8_pack(b)
        assert (packed.shape, packed.dtype, packed.device.type) == ((expected,), torch.uint8, "cuda")
        x = torch.empty(3, k, dtype=torch.float16, device="cuda")
        y = OPS.int8_linear_packed(x, packed, n, torch.empty(n, device="cuda"), None, 0)
        assert (y.shape, y.dtype) == ((3, n), torch.float16)


@needs_cuda
@pytest.mark.parametrize(("m", "k", "n"), [(1, 515, 70), (5, 64, 33), (16, 300, 40), (40, 130, 300), (300, 257, 129)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_packed_and_plain_are_the_same_on_cuda(dtype, m, k, n):
    x, w = normal(m, k).to("cuda", dtype), integers(n, k).cuda()
    scale, bias = torch.rand(n).cuda() / 100, normal(n).cuda()
    packed = OPS.int8_pack(w.t())
    y = int8_linear(x, w, scale, bias, "gelu", backend="cuda")
    assert torch.equal(OPS.int8_linear_packed(x, packed, w.shape[0], scale, bias, ACTIVATIONS.index("gelu")), y)
    q, x_scale, _ = quantize_int8(x, axis=0, backend="cuda")
    options = {"a_scale": x_scale, "b_scale": scale, "bias": bias, "activation": "gelu", "out_dtype": dtype}
    assert torch.equal(int8_matmul(q, w.t(), **options, backend="cuda"), y)
    assert torch.equal(int8_matmul(q, w.t().contiguous(), **options, backend="cuda"), y)
    zero = integers(m).int().cuda()
    sums = OPS.int8_matmul_packed(q, packed, n, None, None, zero, None, 0, torch.int32)
    assert torch.equal(sums.cpu().long(), (q.cpu().long() - zero.cpu().long()[:, None]) @ w.cpu().long().t())
    with pytest.raises(RuntimeError, match="packed: its size"):
        OPS.int8_matmul_packed(q[:, 1:], packed, n, None, None, None, None, 0, torch.int32)
