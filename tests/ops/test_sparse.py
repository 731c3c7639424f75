"""A layout that no kernel takes is named, not handed to the dispatcher."""

from __future__ import annotations

import pytest
import torch

import pykernels as pk

X, W = torch.randn(1, 3, 8, 8), torch.randn(4, 3, 3, 3)
STATES, WEIGHTS = (torch.zeros(1, 2, 4), torch.zeros(1, 2, 4)), [torch.randn(16, 3), torch.randn(16, 4)]
A = torch.ones(4, 4, dtype=torch.int8)


@pytest.mark.parametrize(
    ("call", "argument"),
    [
        (lambda: pk.ops.conv_bn_act(X.to_sparse(), W), "conv_bn_act: x"),
        (lambda: pk.ops.conv_bn_act(X, W.to_sparse()), "conv_bn_act: weight"),
        (lambda: pk.ops.conv_bn_act(X, W, torch.zeros(4).to_sparse()), "conv_bn_act: bias"),
        (lambda: pk.ops.lstm(torch.randn(5, 2, 3).to_sparse(), STATES, WEIGHTS), "lstm: x"),
        (lambda: pk.ops.int8_matmul(A.to_sparse(), A), "int8_matmul: a"),
        (lambda: pk.ops.quantize_int8(X.to_sparse()), "quantize_int8: x"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_sparse_tensors(call, argument):
    with pytest.raises(
        ValueError, match=rf"pykernels.{argument}: expected a dense tensor, got layout torch.sparse_coo"
    ):
        call()
