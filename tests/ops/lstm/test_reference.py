"""The reference of `lstm` and `lstm_cell`: torch's modules in float64, and differentiable twice."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from pykernels.ops.lstm import reference
from pykernels.ops.lstm.spec import LSTM_CELL_SPEC, LSTM_SPEC
from tests.harness import map_tensors
from tests.ops.lstm.checks import (
    assert_close,
    assert_equal,
    cell_problem,
    flat,
    generator,
    leaves,
    problem,
    run,
    run_cell,
)

OPTIONS = [
    pytest.param({}, id="plain"),
    pytest.param({"bias": False}, id="no-bias"),
    pytest.param({"num_layers": 3}, id="layers"),
    pytest.param({"bidirectional": True}, id="bidirectional"),
    pytest.param({"batch_first": True}, id="batch-first"),
    pytest.param({"num_layers": 2, "bidirectional": True, "batch_first": True, "bias": False}, id="all"),
]


def torchs(module_options: dict[str, Any], width: int = 5, hidden: int = 7) -> torch.nn.LSTM:
    torch.manual_seed(3)
    return torch.nn.LSTM(width, hidden, **module_options).double()


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("states", [False, True], ids=["zero", "given"])
def test_reference_is_torchs_lstm(options, states):
    module = torchs(options)
    x = torch.randn(4, 3, 5, dtype=torch.float64, generator=generator())
    batch = x.shape[0 if module.batch_first else 1]
    rows = module.num_layers * (2 if module.bidirectional else 1)
    shape = (rows, batch, 7)
    hx = tuple(
        torch.randn(shape, dtype=torch.float64, generator=generator(i)) if states else torch.zeros(shape).double()
        for i in range(2)
    )
    named = {k: v for k, v in options.items() if k != "bias"}
    got, expected = reference.lstm(x, hx, module._flat_weights, **named), module(x, hx)
    assert_close(flat(got), flat(expected), LSTM_SPEC.bound(torch.float64, 3 * (5 + 14)), torch.float64)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("num_layers", [1, 2])
def test_reference_is_torchs_packed_lstm(bidirectional, num_layers):
    module = torchs({"bidirectional": bidirectional, "num_layers": num_layers})
    batch_sizes = torch.tensor([4, 4, 2, 1, 1])
    data = torch.randn(12, 5, dtype=torch.float64, generator=generator())
    rows = num_layers * (2 if bidirectional else 1)
    hx = tuple(torch.randn(rows, 4, 7, dtype=torch.float64, generator=generator(i)) for i in range(2))
    sequence = torch.nn.utils.rnn.PackedSequence(data, batch_sizes)
    output, states = module(sequence, hx)
    got = reference.lstm(
        data, hx, module._flat_weights, num_layers=num_layers, bidirectional=bidirectional, batch_sizes=batch_sizes
    )
    assert_close(flat(got), [output.data, *states], LSTM_SPEC.bound(torch.float64, 3 * (5 + 14)), torch.float64)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(3, 5), (5,), (0, 5)])
def test_reference_is_torchs_cell(bias, shape):
    torch.manual_seed(3)
    cell = torch.nn.LSTMCell(5, 7, bias=bias).double()
    x = torch.randn(shape, dtype=torch.float64)
    hx = tuple(torch.randn((*shape[:-1], 7), dtype=torch.float64) for _ in range(2))
    weights = [cell.weight_ih, cell.weight_hh, cell.bias_ih, cell.bias_hh]
    assert_close(
        reference.lstm_cell(x, hx, *weights), cell(x, hx), LSTM_CELL_SPEC.bound(torch.float64, 5 + 7), torch.float64
    )


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
