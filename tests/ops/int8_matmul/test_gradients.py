"""Gradients of int8_matmul: of its scales and bias. Quantisation has none, and says so."""

from __future__ import annotations

import pytest
import torch

from pykernels.ops.int8_matmul.reference import int8_matmul_reference
from tests.harness import integers, native
from tests.ops.int8_matmul.checks import OPS, check_gradients


@pytest.mark.parametrize("activation", ["none", "gelu", "silu"])
def test_gradients_of_scales_and_bias(activation):
    a, b = integers(4, 6), integers(6, 5, seed=1)
    generator = torch.Generator().manual_seed(3)
    leaves = [torch.rand(n, generator=generator, dtype=torch.float64) for n in (4, 5, 5)]
    leaves = [(t / (1000 if i == 0 else 1)).requires_grad_() for i, t in enumerate(leaves)]

    def f(a_scale, b_scale, bias):
        given = {"a_scale": 1e-3 + a_scale, "b_scale": b_scale, "bias": bias, "activation": activation}
        return int8_matmul_reference(a, b, **given, out_dtype=torch.float64)

    assert torch.autograd.gradcheck(f, leaves)


@native
@pytest.mark.parametrize("given", [(True, True, True), (True, False, False), (False, False, True)])
def test_native_gradients_equal_the_reference(given):
    check_gradients("cpu", "cpu", "silu", zero_point=True, given=given)


@native
def test_backward_through_quantisation_says_what_is_wrong():
    _q, scale, _ = OPS.quantize_int8(torch.ones(3, 4, requires_grad=True), 0, True)
    with pytest.raises(RuntimeError, match="quantisation has no gradient"):
        scale.sum().backward()
