"""`lstm` and `lstm_cell`: the reference against torch's modules, the kernels against the reference, the contract."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import gradcheck, gradgradcheck

import pykernels as pk
from pykernels.ops.lstm import reference
from pykernels.ops.lstm.op import LSTM
from pykernels.ops.lstm.spec import LSTM_CELL_SPEC, flat_weights
from tests.harness import relative_l2

NATIVE = LSTM.backends["cpu"] is None
native = pytest.mark.skipif(not NATIVE, reason="the CPU kernels are not built")
BACKENDS = ["reference", pytest.param("cpu", marks=native)]

OPTIONS = [
    pytest.param({}, id="plain"),
    pytest.param({"bias": False}, id="no-bias"),
    pytest.param({"num_layers": 3}, id="layers"),
    pytest.param({"bidirectional": True}, id="bidirectional"),
    pytest.param({"batch_first": True}, id="batch-first"),
    pytest.param({"num_layers": 2, "bidirectional": True, "batch_first": True, "bias": False}, id="all"),
]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def problem(
    time: int,
    batch: int,
    width: int,
    hidden: int,
    *,
    num_layers: int = 1,
    bidirectional: bool = False,
    batch_first: bool = False,
    bias: bool = True,
    batch_sizes: list[int] | None = None,
    dtype: torch.dtype = torch.float32,
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    g, directions = generator(), 2 if bidirectional else 1
    shape = (batch, time, width) if batch_first else (time, batch, width)
    if batch_sizes is not None:
        shape = (sum(batch_sizes), width)
    x = torch.randn(shape, generator=g).to(dtype)
    h0, c0 = (torch.randn(num_layers * directions, batch, hidden, generator=g).to(dtype) for _ in range(2))
    weights = flat_weights(width, hidden, num_layers, directions, bias, dtype, g)
    options: dict[str, Any] = {
        "num_layers": num_layers,
        "bidirectional": bidirectional,
        "batch_first": batch_first,
    }
    if batch_sizes is not None:
        options["batch_sizes"] = torch.tensor(batch_sizes)
    return (x, (h0, c0), weights), options


def flat(result: tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]) -> list[torch.Tensor]:
    return [result[0], *result[1]]


def torchs(module_options: dict[str, Any], width: int = 5, hidden: int = 7) -> torch.nn.LSTM:
    torch.manual_seed(3)
    return torch.nn.LSTM(width, hidden, **module_options).double()


# The oracle


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
    for g, e in zip(flat(got), flat(expected), strict=True):
        torch.testing.assert_close(g, e, rtol=1e-12, atol=1e-14)


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
    for g, e in zip(flat(got), [output.data, *states], strict=True):
        torch.testing.assert_close(g, e, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(3, 5), (5,), (0, 5)])
def test_reference_is_torchs_cell(bias, shape):
    torch.manual_seed(3)
    cell = torch.nn.LSTMCell(5, 7, bias=bias).double()
    x = torch.randn(shape, dtype=torch.float64)
    hx = tuple(torch.randn((*shape[:-1], 7), dtype=torch.float64) for _ in range(2))
    weights = [cell.weight_ih, cell.weight_hh, cell.bias_ih, cell.bias_hh]
    for g, e in zip(reference.lstm_cell(x, hx, *weights), cell(x, hx), strict=True):
        torch.testing.assert_close(g, e, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_reference_of_narrow_dtypes_rounds_once_per_layer(dtype):
    (x, states, weights), options = problem(6, 3, 8, 9, dtype=dtype)
    got = reference.lstm(x, states, weights, **options)
    exact = reference.lstm(x.float(), tuple(s.float() for s in states), [w.float() for w in weights], **options)
    for g, e in zip(flat(got), flat(exact), strict=True):
        assert g.dtype == dtype
        torch.testing.assert_close(g, e.to(dtype), rtol=0, atol=0)


# Gradients


def doubles(args: tuple[Any, ...]) -> list[torch.Tensor]:
    x, states, weights = args
    return [t.double().requires_grad_() for t in (x, *states, *weights)]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_layers": 2, "bidirectional": True, "batch_first": True},
        {"bias": False, "bidirectional": True, "batch_sizes": [2, 2, 1]},
    ],
    ids=["plain", "deep", "packed"],
)
def test_gradcheck_of_the_reference(options):
    args, named = problem(3, 2, 3, 2, **options)

    def run(x, h, c, *weights):
        return flat(pk.ops.lstm(x, (h, c), weights, **named, backend="reference"))

    inputs = doubles(args)
    assert gradcheck(run, inputs)
    assert gradgradcheck(run, inputs)


def test_gradcheck_of_the_reference_cell():
    def run(x, h, c, *weights):
        return pk.ops.lstm_cell(x, (h, c), *weights, backend="reference")

    (x, (h0, c0), weights), _ = problem(1, 2, 3, 2)
    inputs = doubles((x[0], (h0[0], c0[0]), weights))
    assert gradcheck(run, inputs)
    assert gradgradcheck(run, inputs)


# The public function


@pytest.mark.parametrize("backend", BACKENDS)
def test_unbatched_is_a_batch_of_one(backend):
    (x, (h0, c0), weights), named = problem(5, 1, 6, 7, num_layers=2, bidirectional=True)
    got = pk.ops.lstm(x[:, 0], (h0[:, 0], c0[:, 0]), weights, **named, backend=backend)
    expected = pk.ops.lstm(x, (h0, c0), weights, **named, backend=backend)
    for g, e in zip(flat(got), flat(expected), strict=True):
        assert torch.equal(g, e.squeeze(1))


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bidirectional", [False, True])
def test_dropout_draws_torchs_masks(backend, batch_first, bidirectional):
    options = {"num_layers": 3, "bidirectional": bidirectional, "batch_first": batch_first}
    (x, hx, weights), named = problem(6, 4, 5, 8, **options)
    torch.manual_seed(11)
    expected = torch.lstm(x, hx, weights, True, 3, 0.5, True, bidirectional, batch_first)
    for _ in range(2):
        torch.manual_seed(11)
        got = pk.ops.lstm(x, hx, weights, **named, dropout=0.5, training=True, backend=backend)
        for g, e in zip(flat(got), expected, strict=True):
            torch.testing.assert_close(g, e, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_dropout_only_in_training_and_not_after_the_last_layer(backend):
    args, named = problem(4, 3, 5, 8, num_layers=2)
    plain = flat(pk.ops.lstm(*args, **named, backend=backend))
    still = flat(pk.ops.lstm(*args, **named, dropout=0.9, backend=backend))
    assert all(torch.equal(a, b) for a, b in zip(plain, still, strict=True))
    (x, (h, c), weights), _ = problem(4, 3, 5, 8)
    one = flat(pk.ops.lstm(x, (h, c), weights, backend=backend))
    dropped = flat(pk.ops.lstm(x, (h, c), weights, dropout=0.9, training=True, backend=backend))
    assert all(torch.equal(a, b) for a, b in zip(one, dropped, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_dropout_of_everything_leaves_the_second_layer_without_input(backend):
    (x, (h, c), weights), named = problem(4, 3, 5, 8, num_layers=2)
    got = pk.ops.lstm(x, (h, c), weights, **named, dropout=1.0, training=True, backend=backend)
    second = pk.ops.lstm(torch.zeros(4, 3, 8), (h[1:], c[1:]), weights[4:], backend=backend)
    torch.testing.assert_close(got[0], second[0])


# Bad input, one test a message


def bad(call: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=re.escape(message)):
        call()


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"x": torch.randn(3, 2, 4)}, ValueError, "weights[0]: expected shape (24, 4), got (24, 5)"),
        ({"x": torch.randn(1, 3, 2, 5)}, ValueError, "x: expected 3 dimensions, or 2 for an unbatched sequence, got 4"),
        ({"x": torch.zeros(0, 2, 5)}, ValueError, "x: expected at least one time step, got none"),
        ({"x": torch.zeros(3, 2, 5).long()}, TypeError, "x: expected a floating dtype, got torch.int64"),
        ({"x": [1.0]}, TypeError, "x: expected a tensor, got list"),
        ({"states": torch.zeros(1, 2, 6)}, TypeError, "states: expected a pair (h, c) of tensors, got Tensor"),
        ({"states": (torch.zeros(1, 2, 6),)}, TypeError, "states: expected a pair (h, c) of tensors, got tuple of 1"),
        ({"x": torch.zeros(3, 2, 5).double()}, TypeError, "x: expected the weights' dtype torch.float32, got"),
        ({"h0": torch.zeros(1, 3, 6)}, ValueError, "h0: expected shape (1, 2, 6), got (1, 3, 6)"),
        ({"h0": torch.zeros(1, 2, 6).double()}, TypeError, "h0: expected x's dtype torch.float32, got torch.float64"),
        ({"c0": torch.zeros(1, 2, 7)}, ValueError, "c0: expected shape (1, 2, 6), got (1, 2, 7)"),
        ({"c0": torch.zeros(1, 2, 6, device="meta")}, ValueError, "c0: expected x's device cpu, got meta"),
        ({"c0": None}, TypeError, "c0: expected a tensor, got NoneType"),
        ({"weights": 3}, ValueError, "weights: expected 4 tensors, or 2 without biases (projections are not"),
        ({"w_hh": torch.zeros(24, 5)}, ValueError, "weights[1]: expected shape (4 * H, H) with H > 0, got (24, 5)"),
        ({"w_hh": torch.zeros(0, 0)}, ValueError, "weights[1]: expected shape (4 * H, H) with H > 0, got (0, 0)"),
        ({"b_hh": torch.zeros(23)}, ValueError, "weights[3]: expected shape (24,), got (23,)"),
        ({"b_hh": None}, TypeError, "weights[3]: expected a tensor, got NoneType"),
        ({"num_layers": 0}, ValueError, "num_layers: expected an int >= 1, got 0"),
        ({"dropout": 1.5}, ValueError, "dropout: expected a probability in [0, 1], got 1.5"),
        ({"batch_sizes": torch.tensor([2, 2, 2])}, ValueError, "x: expected 2 dimensions (packed data), got 3"),
        ({"batch_sizes": [2]}, TypeError, "batch_sizes: expected a tensor, got list"),
        ({"batch_sizes": torch.tensor([2], dtype=torch.int32)}, TypeError, "batch_sizes: expected torch.int64"),
        ({"batch_sizes": torch.tensor([[2]])}, ValueError, "batch_sizes: expected 1 dimension, got shape (1, 1)"),
        ({"backend": "tpu"}, ValueError, "backend: expected one of"),
        ({"backend": "cuda"}, RuntimeError, "backend='cuda' cannot run"),
    ],
)
def test_bad_lstm(change, kind, message):
    (x, (h0, c0), weights), named = problem(3, 2, 5, 6)
    places = {"w_hh": 1, "b_hh": 3}
    for name, value in change.items():
        if name == "x":
            x = value
        elif name == "h0":
            h0 = value
        elif name == "c0":
            c0 = value
        elif name == "weights":
            weights = weights[:value]
        elif name in places:
            weights[places[name]] = value
        elif name != "states":
            named[name] = value
    states = change.get("states", (h0, c0))
    bad(lambda: pk.ops.lstm(x, states, weights, **named), kind, message)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("sizes", [[2, 3], [1, 1], [3, 1], [2, 1], [5, 0, 0, -1], [2, -1, 4], [2, 2, 1, 0]])
def test_bad_batch_sizes(backend, sizes):
    (x, (h0, c0), weights), _ = problem(1, 2, 5, 6, batch_sizes=[2, 2, 1])
    with pytest.raises(ValueError, match=r"pykernels.lstm: batch_sizes: expected sizes >= 1 that do not rise"):
        pk.ops.lstm(x, (h0, c0), weights, batch_sizes=torch.tensor(sizes), backend=backend)


def test_packed_without_a_step():
    (x, (h0, c0), weights), _ = problem(1, 2, 5, 6, batch_sizes=[2, 2, 1])
    bad(
        lambda: pk.ops.lstm(x, (h0, c0), weights, batch_sizes=torch.zeros(0, dtype=torch.int64)),
        ValueError,
        "expected at least one time step",
    )


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"x": torch.zeros(2, 4)}, ValueError, "w_ih: expected shape (24, 4), got (24, 5)"),
        ({"x": torch.zeros(1, 2, 5)}, ValueError, "x: expected 1 or 2 dimensions, (I,) or (B, I), got 3 dimensions"),
        ({"x": torch.zeros(2, 5).double()}, TypeError, "x: expected the weights' dtype torch.float32, got"),
        ({"h": torch.zeros(3, 6)}, ValueError, "h: expected shape (2, 6), got (3, 6)"),
        ({"c": torch.zeros(6)}, ValueError, "c: expected shape (2, 6), got (6,)"),
        ({"c": torch.zeros(2, 6).bfloat16()}, TypeError, "c: expected x's dtype torch.float32, got torch.bfloat16"),
        ({"w_ih": None}, TypeError, "w_ih: expected a tensor, got NoneType"),
        ({"w_hh": torch.zeros(6, 24)}, ValueError, "w_hh: expected shape (4 * H, H) with H > 0, got (6, 24)"),
        ({"b_ih": torch.zeros(6)}, ValueError, "b_ih: expected shape (24,), got (6,)"),
        ({"b_hh": 0.5}, TypeError, "b_hh: expected a tensor, got float"),
    ],
)
def test_bad_cell(change, kind, message):
    (x, (h0, c0), weights), _ = problem(1, 2, 5, 6)
    call = dict(zip(("x", "h", "c", "w_ih", "w_hh", "b_ih", "b_hh"), (x[0], h0[0], c0[0], *weights), strict=True))
    call |= change
    x, h, c, *weights = call.values()
    bad(lambda: pk.ops.lstm_cell(x, (h, c), *weights), kind, "pykernels.lstm_cell: " + message)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("missing", ["b_ih", "b_hh"])
def test_cell_with_one_bias(backend, missing):
    (x, (h0, c0), (w_ih, w_hh, b_ih, b_hh)), _ = problem(1, 2, 5, 6)
    biases = {"b_ih": b_ih, "b_hh": b_hh, missing: None}
    got = pk.ops.lstm_cell(x[0], (h0[0], c0[0]), w_ih, w_hh, **biases, backend=backend)
    expected = torch.lstm_cell(x[0], (h0[0], c0[0]), w_ih, w_hh, biases["b_ih"], biases["b_hh"])
    for g, e in zip(got, expected, strict=True):
        assert relative_l2(g, e) <= LSTM_CELL_SPEC.tolerance(torch.float32, LSTM_CELL_SPEC.samples[0])


@native
@pytest.mark.parametrize(
    ("dtype", "pitches"), [(torch.float32, (8 + 12 + 1, 12 + 12 + 1)), (torch.float16, (8 + 16 + 2, 16 + 16 + 2))]
)
def test_traced_shapes_on_cuda(dtype, pitches):
    """What tracing is told of CUDA tensors; the kernels' own sizes are checked where they run."""
    with FakeTensorMode():

        def empty(*shape):
            return torch.empty(shape, dtype=dtype, device="cuda")

        h = empty(2, 3, 10)
        weights = [empty(*s) for wide in (6, 10) for s in ((40, wide), (40, 10), (40,), (40,))]
        output, h_n, _, reserve = torch.ops.pykernels.lstm(
            empty(5, 3, 6), h, h, weights, None, 2, False, False, True, True
        )
        packed = torch.ops.pykernels.lstm_pack(weights, 2, False, True)
        h_out, _, cell_reserve = torch.ops.pykernels.lstm_cell(
            empty(3, 6), empty(3, 10), empty(3, 10), *weights[:4], True
        )
    assert output.shape == (5, 3, 10)
    assert h_n.shape == (2, 3, 10)
    assert h_out.shape == (3, 10)
    assert all(t.dtype == dtype for t in (output, reserve, packed, cell_reserve))
    assert reserve.shape == (2 * 15 * 50 + 15 * 10,)
    assert cell_reserve.shape == (3 * 50,)
    # Rows of 6 and 10 elements padded to whole 16 bytes, and a float32 for each.
    assert packed.shape == (40 * sum(pitches),)


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_features(backend):
    torch.manual_seed(0)
    states = (torch.randn(1, 2, 3), torch.randn(1, 2, 3))
    weights = [torch.randn(12, 0), torch.randn(12, 3), torch.randn(12), torch.randn(12)]
    expected, _, _ = torch.lstm(torch.randn(4, 2, 0), states, weights, True, 1, 0.0, False, False, False)
    x = torch.randn(4, 2, 0, requires_grad=True)
    y, _ = pk.ops.lstm(x, states, weights, backend=backend)
    y.sum().backward()
    assert x.grad.shape == x.shape
    torch.testing.assert_close(y, expected)
