"""Arguments that should be numbers, or sequences, and are none: the op and the argument are named."""

from __future__ import annotations

import pytest
import torch

import pykernels as pk


@pytest.mark.parametrize(
    ("name", "value"), [("eps", "a"), ("eps", None), ("negative_slope", "a"), ("negative_slope", None)]
)
def test_conv_bn_act(name, value):
    x, w = torch.randn(1, 3, 4, 4), torch.randn(2, 3, 1, 1)
    with pytest.raises(
        TypeError, match=rf"pykernels.conv_bn_act: {name}: expected a number, got {type(value).__name__}"
    ):
        pk.ops.conv_bn_act(x, w, **{name: value})


@pytest.mark.parametrize(("name", "value"), [("eps", "a"), ("momentum", None), ("negative_slope", "a")])
def test_batch_norm_act(name, value):
    with pytest.raises(TypeError, match=rf"pykernels.batch_norm_act: {name}: expected a number"):
        pk.ops.batch_norm_act(torch.randn(2, 3, 4, 4), training=True, **{name: value})


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("num_layers", "1", "an int, got str"),
        ("num_layers", 1.0, "an int, got float"),
        ("dropout", None, "a number, got NoneType"),
        ("weights", None, "a sequence of tensors, got NoneType"),
        ("weights", torch.zeros(16, 3), "a sequence of tensors, got Tensor"),
    ],
)
def test_lstm(name, value, expected):
    h = torch.zeros(1, 2, 4)
    arguments = {"weights": [torch.randn(16, 3), torch.randn(16, 4)], name: value}
    with pytest.raises(TypeError, match=rf"pykernels.lstm: {name}: expected {expected}"):
        pk.ops.lstm(torch.randn(5, 2, 3), (h, h), **arguments)
