"""The reference of `lstm` and `lstm_cell`: torch's modules in float64, and differentiable twice."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from pykernels.ops.lstm import reference
from pykernels.ops.lstm.spec import bound
from tests.harness import map_tensors
from tests.ops.lstm.checks import assert_close, assert_equal, cell_problem, flat, leaves, problem, run, run_cell

OPTIONS = [
    pytest.param({}, id="plain"),
    pytest.param({"bias": False}, id="no-bias"),
    pytest.param({"num_layers": 3}, id="layers"),
    pytest.param({"bidirectional": True}, id="bidirectional"),
    pytest.param({"batch_first": True}, id="batch-first"),
    pytest.param({"num_layers": 2, "bidirectional": True, "batch_first": True, "bias": False}, id="all"),
]


def check_is_torchs(args: tuple[Any, ...], named: dict[str, Any]) -> None:
    x, hx, weights = args
    sizes = [named["batch_sizes"]] if "batch_sizes" in named else []
    flags = len(weights) == 4 * len(hx[0]), named["num_layers"], 0.0, False, named["bidirectional"]
    expected = torch.lstm(x, *sizes, hx, weights, *flags, *([] if sizes else [named["batch_first"]]))
    assert_close(flat(reference.lstm(*args, **named)), expected, bound(args, named))


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("states", [False, True], ids=["zero", "given"])
def test_reference_is_torchs_lstm(options, states):
    (x, hx, weights), named = problem(4, 3, 5, 7, **options, dtype=torch.float64)
    check_is_torchs((x, hx if states else tuple(torch.zeros_like(t) for t in hx), weights), named)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("num_layers", [1, 2])
def test_reference_is_torchs_packed_lstm(bidirectional, num_layers):
    options = {"bidirectional": bidirectional, "num_layers": num_layers, "batch_sizes": [4, 4, 2, 1, 1]}
    check_is_torchs(*problem(5, 4, 5, 7, **options, dtype=torch.float64))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(3, 5), (5,), (0, 5)])
def test_reference_is_torchs_cell(bias, shape):
    args = x, (h, c), weights = cell_problem(math.prod(shape[:-1]), 5, 7, bias=bias, dtype=torch.float64)
    if len(shape) == 1:
        x, h, c = x[0], h[0], c[0]
    cell = torch.nn.LSTMCell(5, 7, bias=bias).double()  # torch.lstm_cell takes batches only
    for own, value in zip(cell.parameters(), weights, strict=True):
        own.data = value
    assert_close(reference.lstm_cell(x, (h, c), *weights), cell(x, (h, c)), bound(args, {}))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_reference_of_narrow_dtypes_rounds_once_per_layer(dtype):
    args, named = problem(6, 3, 8, 9, dtype=dtype)
    wide = flat(reference.lstm(*map_tensors(args, torch.Tensor.float), **named))
    assert_equal(flat(reference.lstm(*args, **named)), [t.to(dtype) for t in wide])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_layers": 2, "bidirectional": True, "batch_first": True},
        {"bias": False, "bidirectional": True, "batch_sizes": [2, 2, 1]},
    ],
    ids=["plain", "deep", "packed"],
)
def test_gradcheck(options):
    args, named = problem(3, 2, 3, 2, **options)
    inputs = leaves(args, torch.float64)
    assert gradcheck(lambda *inputs: run(inputs, named, "reference"), inputs)
    assert gradgradcheck(lambda *inputs: run(inputs, named, "reference"), inputs)


def test_gradcheck_of_the_cell():
    inputs = leaves(cell_problem(2, 3, 2), torch.float64)
    assert gradcheck(lambda *inputs: run_cell(inputs, "reference"), inputs)
    assert gradgradcheck(lambda *inputs: run_cell(inputs, "reference"), inputs)
