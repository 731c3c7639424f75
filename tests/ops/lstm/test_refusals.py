"""What `lstm`, `lstm_cell` and their operators refuse beyond test_dialect.py, one message each."""

from __future__ import annotations

import re

import pytest
import torch

import pykernels as pk
from pykernels.ops.lstm.spec import LSTM_CELL_SPEC, LSTM_SPEC
from tests.harness import native, tensors_of
from tests.ops.lstm.checks import BACKENDS, cell_problem, problem


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"x": torch.randn(3, 2, 4)}, ValueError, "weights[0]: expected shape (24, 4), got (24, 5)"),
        ({"x": torch.randn(1, 3, 2, 5)}, ValueError, "x: expected 3 dimensions, or 2 for an unbatched sequence, got 4"),
        ({"x": torch.zeros(0, 2, 5)}, ValueError, "x: expected at least one time step, got none"),
        ({"x": torch.zeros(3, 2, 5).long()}, TypeError, "x: expected a floating dtype, got torch.int64"),
        ({"x": torch.zeros(3, 2, 5).double()}, TypeError, "x: expected the weights' dtype torch.float32, got"),
        ({"h0": torch.zeros(1, 3, 6)}, ValueError, "h0: expected shape (1, 2, 6), got (1, 3, 6)"),
        ({"h0": torch.zeros(1, 2, 6).double()}, TypeError, "h0: expected x's dtype torch.float32, got torch.float64"),
        ({"c0": torch.zeros(1, 2, 7)}, ValueError, "c0: expected shape (1, 2, 6), got (1, 2, 7)"),
        ({"weights": 3}, ValueError, "weights: expected 4 tensors, or 2 without biases (projections are not"),
        ({"w_hh": torch.zeros(24, 5)}, ValueError, "weights[1]: expected shape (4 * H, H) with H > 0, got (24, 5)"),
        ({"w_hh": torch.zeros(0, 0)}, ValueError, "weights[1]: expected shape (4 * H, H) with H > 0, got (0, 0)"),
        ({"b_hh": torch.zeros(23)}, ValueError, "weights[3]: expected shape (24,), got (23,)"),
        ({"num_layers": 0}, ValueError, "num_layers: expected an int >= 1, got 0"),
        ({"dropout": 1.5}, ValueError, "dropout: expected a probability in [0, 1], got 1.5"),
        ({"batch_sizes": torch.tensor([2, 2, 2])}, ValueError, "x: expected 2 dimensions (packed data), got 3"),
        ({"batch_sizes": torch.tensor([2], dtype=torch.int32)}, TypeError, "batch_sizes: expected torch.int64"),
        ({"batch_sizes": torch.tensor([[2]])}, ValueError, "batch_sizes: expected 1 dimension, got shape (1, 1)"),
        ({"backend": "cuda"}, RuntimeError, "backend='cuda' cannot run"),
    ],
)
def test_bad_lstm(change, kind, message):
    (x, (h0, c0), weights), named = problem(3, 2, 5, 6)
    call = {"x": x, "h0": h0, "c0": c0, "w_ih": weights[0], "w_hh": weights[1], "b_ih": weights[2], "b_hh": weights[3]}
    call |= named | change
    x, h0, c0, *weights = (call.pop(name) for name in ("x", "h0", "c0", "w_ih", "w_hh", "b_ih", "b_hh"))
    weights = weights[: call.pop("weights", 4)]
    with pytest.raises(kind, match=re.escape(message)):
        pk.ops.lstm(x, (h0, c0), weights, **call)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("sizes", [[2, 3], [1, 1], [3, 1], [2, 1], [5, 0, 0, -1], [2, -1, 4], [2, 2, 1, 0]])
def test_bad_batch_sizes(backend, sizes):
    (x, (h0, c0), weights), _ = problem(1, 2, 5, 6, batch_sizes=[2, 2, 1])
    with pytest.raises(ValueError, match=r"pykernels.lstm: batch_sizes: expected sizes >= 1 that do not rise"):
        pk.ops.lstm(x, (h0, c0), weights, batch_sizes=torch.tensor(sizes), backend=backend)


def test_packed_without_a_step():
    (x, (h0, c0), weights), _ = problem(1, 2, 5, 6, batch_sizes=[2, 2, 1])
    with pytest.raises(ValueError, match="expected at least one time step"):
        pk.ops.lstm(x, (h0, c0), weights, batch_sizes=torch.zeros(0, dtype=torch.int64))


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"x": torch.zeros(2, 4)}, ValueError, "w_ih: expected shape (24, 4), got (24, 5)"),
        ({"x": torch.zeros(1, 2, 5)}, ValueError, "x: expected 1 or 2 dimensions, (I,) or (B, I), got 3 dimensions"),
        ({"x": torch.zeros(2, 5).double()}, TypeError, "x: expected the weights' dtype torch.float32, got"),
        ({"h": torch.zeros(3, 6)}, ValueError, "h: expected shape (2, 6), got (3, 6)"),
        ({"c": torch.zeros(6)}, ValueError, "c: expected shape (2, 6), got (6,)"),
        ({"c": torch.zeros(2, 6).bfloat16()}, TypeError, "c: expected x's dtype torch.float32, got torch.bfloat16"),
        ({"w_hh": torch.zeros(6, 24)}, ValueError, "w_hh: expected shape (4 * H, H) with H > 0, got (6, 24)"),
        ({"b_ih": torch.zeros(6)}, ValueError, "b_ih: expected shape (24,), got (6,)"),
    ],
)
def test_bad_cell(change, kind, message):
    names = "x", "h", "c", "w_ih", "w_hh", "b_ih", "b_hh"
    x, h, c, *weights = (dict(zip(names, tensors_of(cell_problem(2, 5, 6)), strict=True)) | change).values()
    with pytest.raises(kind, match=re.escape("pykernels.lstm_cell: " + message)):
        pk.ops.lstm_cell(x, (h, c), *weights)


@native
@pytest.mark.parametrize("spec", [LSTM_SPEC, LSTM_CELL_SPEC], ids=lambda s: s.name)
def test_float64_and_float16_go_to_the_reference(spec):
    args, kwargs = spec.samples[0].make(torch.float64, torch.Generator().manual_seed(0))
    got, expected = spec.function(*args, **kwargs), spec.reference(*args, **kwargs)
    assert torch.equal(got[0], expected[0])
    with pytest.raises(RuntimeError, match=r"its kernels take torch\.float32, torch\.bfloat16, not torch\.float64"):
        spec.function(*args, **kwargs, backend="cpu")


@native
@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ([2, 0, 3], "expected positive sizes that don't increase, got 3"),
        ([2, 2, 1, 0], "expected positive sizes that don't increase, got 0"),
        ([-1, -1], "expected positive sizes that don't increase, got -1"),
        ([1, 2, 2], "expected positive sizes that don't increase, got 2"),
        ([2, 1, 1], "expected a sum of x's 5 rows, got 4"),
        ([2, 2, 2], "expected a sum of x's 5 rows, got 6"),
        ([2**62, 2**62], "expected positive sizes that don't increase, and fewer, got 4611686018427387904"),
        ([], "expected sequence length to be larger than 0, got shape (0)"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_the_binding_refuses_bad_batch_sizes(sizes, message, packed):
    (x, (h0, c0), weights), _ = problem(1, 2, 5, 6, batch_sizes=[2, 2, 1])
    ops, batch_sizes = torch.ops.pykernels, torch.tensor(sizes, dtype=torch.int64)
    call = x, h0, c0, ops.lstm_pack(weights, 1, False, True) if packed else weights
    op, options = (ops.lstm_packed, (1, False, False)) if packed else (ops.lstm, (1, False, False, True, False))
    with pytest.raises(RuntimeError, match=re.escape("batch_sizes: " + message)):
        op(*call, *((5, 6) if packed else ()), batch_sizes, *options)


@native
@pytest.mark.parametrize("length", [0, 10, 127, 200])
def test_the_binding_refuses_a_short_block(length):
    x, (h, c), _ = cell_problem(2, 5, 6)
    with pytest.raises(RuntimeError, match=r"pykernels\.lstm_cell_packed: packed: "):
        torch.ops.pykernels.lstm_cell_packed(x, h, c, torch.zeros(length, dtype=torch.uint8), 5, 6)
