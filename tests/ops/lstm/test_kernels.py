"""The kernels of `lstm` and `lstm_cell` against the float64 reference: any shape and stride, extremes, gradients."""

from __future__ import annotations

import re
import threading
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import pykernels as pk
from pykernels import _native
from pykernels.ops._spec import ROUNDOFF
from pykernels.ops.lstm import reference
from pykernels.ops.lstm.spec import GROWTH, LSTM_CELL_SPEC, LSTM_SPEC
from tests.harness import forced_isa, host_isas, relative_l2, to_double
from tests.ops.lstm.test_call import flat, problem

pytestmark = pytest.mark.skipif(_native.error is not None, reason="the native library is not built")

TINY = torch.finfo(torch.float32).tiny


def tolerance(args: tuple[Any, ...], named: dict[str, Any], backward: bool = False) -> float:
    """As `OpSpec.tolerance`. A gradient has the forward's error in its gates, and passes sums of its own: over 4H
    gates a step, and over the rows for the weights."""
    x, states, weights = args
    dtype, hidden, layers = x.dtype, states[0].shape[-1], named.get("num_layers", 1)
    rows = x.numel() // x.shape[-1]
    wide = max(w.shape[-1] for w in weights if w.dim() == 2)
    reduction = layers * (wide + hidden + 2 + (4 * hidden + rows if backward else 0))
    error = GROWTH * max(reduction, 4) ** 0.5 * ROUNDOFF[torch.float32]
    return error + (2 * GROWTH * ROUNDOFF[dtype] if dtype != torch.float32 else 0)


def check_forward(args: tuple[Any, ...], named: dict[str, Any]) -> None:
    got = flat(pk.ops.lstm(*args, **named, backend="cpu"))
    expected = flat(reference.lstm(*to_double(args), **named))
    for g, e in zip(got, expected, strict=True):
        assert g.shape == e.shape
        assert g.dtype == args[0].dtype
        error = relative_l2(g, e)
        # A state that is all but zero may come out flushed to zero.
        assert error <= tolerance(args, named) or (g.double() - e).abs().max() <= TINY


def strided(t: torch.Tensor, how: str) -> torch.Tensor:
    """The same values with other strides."""
    if how == "transposed":
        return t.transpose(0, -1).contiguous().transpose(0, -1)
    if how == "gaps":
        wide = t.new_full((*t.shape[:-1], 2 * t.shape[-1] + 1), float("nan"))
        wide[..., 1::2] = t
        return wide[..., 1::2]
    if how == "rows":
        wide = t.new_full((2 * t.shape[0], *t.shape[1:]), float("nan"))
        wide[::2] = t
        return wide[::2]
    return t


STRIDES = st.sampled_from(["plain", "transposed", "gaps", "rows"])


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_shape_and_stride(data):
    draw = data.draw
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16]))
    packed = draw(st.booleans())
    time = draw(st.integers(1, 6))
    sizes = sorted(draw(st.lists(st.integers(1, 7), min_size=time, max_size=time)), reverse=True) if packed else None
    args, named = problem(
        time,
        sizes[0] if sizes else draw(st.integers(0, 9)),
        draw(st.integers(1, 40)),
        draw(st.integers(1, 40)),
        num_layers=draw(st.integers(1, 3)),
        bidirectional=draw(st.booleans()),
        batch_first=draw(st.booleans()),
        bias=draw(st.booleans()),
        batch_sizes=sizes,
        dtype=dtype,
    )
    x, (h0, c0), weights = args
    args = (
        strided(x, draw(STRIDES)),
        (strided(h0, draw(STRIDES)), strided(c0, draw(STRIDES))),
        [strided(w, draw(STRIDES)) if w.dim() == 2 else w for w in weights],
    )
    check_forward(args, named)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_cell_of_any_shape_and_stride(data):
    draw = data.draw
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16]))
    (x, (h0, c0), weights), _ = problem(
        1,
        draw(st.integers(0, 70)),
        draw(st.integers(1, 70)),
        draw(st.integers(1, 70)),
        bias=draw(st.booleans()),
        dtype=dtype,
    )
    x, h, c = (strided(t[0], draw(STRIDES)) for t in (x, h0, c0))
    weights = [strided(w, draw(STRIDES)) if w.dim() == 2 else w for w in weights]
    got = pk.ops.lstm_cell(x, (h, c), *weights, backend="cpu")
    expected = reference.lstm_cell(*to_double((x, (h, c), *weights)))
    for g, e in zip(got, expected, strict=True):
        assert relative_l2(g, e) <= tolerance((x, (h, c), weights), {})


def test_expanded_input_and_states():
    (x, (h0, c0), weights), named = problem(4, 3, 5, 6)
    args = (x[:1, :1].expand(4, 3, 5), (h0[:, :1].expand(1, 3, 6), c0[:, :1].expand(1, 3, 6)), weights)
    check_forward(args, named)


# Extremes


@pytest.mark.parametrize("isa", host_isas())
@pytest.mark.parametrize("scale", [1e-30, 1e4, 1e18, 1e38])
def test_gates_from_closed_to_saturated(isa, scale):
    (x, (h0, c0), weights), named = problem(5, 3, 17, 19)
    with forced_isa(isa):
        check_forward((x * scale, (h0, c0), weights), named)


@pytest.mark.parametrize("isa", host_isas())
@pytest.mark.parametrize("value", [float("inf"), -float("inf")])
def test_infinite_input_saturates_the_gates(isa, value):
    (x, (h0, c0), weights), named = problem(5, 3, 17, 19)
    x[2, 1, 4] = value
    with forced_isa(isa):
        check_forward((x, (h0, c0), weights), named)


@pytest.mark.parametrize("isa", host_isas())
@pytest.mark.parametrize("where", ["x", "h0", "c0"])
def test_nan_stays_in_its_sequence(isa, where):
    (x, (h0, c0), weights), named = problem(5, 3, 17, 19)
    clean = flat(pk.ops.lstm(x, (h0, c0), weights, backend="cpu"))
    {"x": x[2], "h0": h0[0], "c0": c0[0]}[where][1, 3] = float("nan")
    with forced_isa(isa):
        got = flat(pk.ops.lstm(x, (h0, c0), weights, backend="cpu"))
        check_forward((x, (h0, c0), weights), named)
    others = [0, 2]
    for g, c in zip(got, clean, strict=True):
        torch.testing.assert_close(g[:, others], c[:, others])
    assert got[0][-1, 1].isnan().all()


@pytest.mark.parametrize("isa", host_isas())
def test_denormal_states(isa):
    (x, (h0, c0), weights), named = problem(5, 3, 17, 19)
    with forced_isa(isa):
        check_forward((x * 1e-40, (h0 * 1e-40, c0 * 1e-40), [w * 1e-40 for w in weights]), named)


def test_infinite_cell_state():
    (x, (h0, c0), weights), named = problem(3, 2, 5, 6)
    c0[0, 0, 0], c0[0, 1, 2] = float("inf"), -float("inf")
    check_forward((x, (h0, c0), weights), named)


# Gradients

GRADIENTS = [
    pytest.param({}, id="plain"),
    pytest.param({"bias": False}, id="no-bias"),
    pytest.param({"num_layers": 3}, id="layers"),
    pytest.param({"num_layers": 2, "bidirectional": True, "batch_first": True}, id="deep"),
    pytest.param({"num_layers": 2, "bidirectional": True, "batch_sizes": [5, 4, 4, 2, 1, 1]}, id="packed"),
    pytest.param({"batch_sizes": [5, 5, 3], "bias": False}, id="packed-no-bias"),
]


def leaves(args: tuple[Any, ...], dtype: torch.dtype | None = None) -> list[torch.Tensor]:
    x, states, weights = args
    return [t.detach().to(dtype or t.dtype).clone().requires_grad_() for t in (x, *states, *weights)]


def gradients(
    inputs: list[torch.Tensor], named: dict[str, Any], backend: str, used: tuple[int, ...] = (0, 1, 2)
) -> tuple[torch.Tensor, ...]:
    outputs = flat(pk.ops.lstm(inputs[0], (inputs[1], inputs[2]), inputs[3:], **named, backend=backend))
    g = torch.Generator().manual_seed(7)
    grads = [torch.randn(o.shape, generator=g).to(o.dtype) for o in outputs]
    return torch.autograd.grad([outputs[i] for i in used], inputs, [grads[i] for i in used], allow_unused=True)


@pytest.mark.parametrize("isa", host_isas())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize("options", GRADIENTS)
def test_native_gradients(options, dtype, isa):
    args, named = problem(6, 5, 13, 21, **options, dtype=dtype)
    with forced_isa(isa):
        got = gradients(leaves(args), named, "cpu")
    expected = gradients(leaves(args, torch.float64), named, "reference")
    for g, e in zip(got, expected, strict=True):
        assert g.dtype == dtype
        assert g.shape == e.shape
        assert relative_l2(g, e) <= tolerance(args, named, backward=True)


@pytest.mark.parametrize("used", [(0,), (1,), (2,), (1, 2), (0, 2)])
def test_native_gradients_of_some_outputs(used):
    args, named = problem(6, 5, 13, 21, num_layers=2, bidirectional=True)
    got = gradients(leaves(args), named, "cpu", used)
    expected = gradients(leaves(args, torch.float64), named, "reference", used)
    for g, e in zip(got, expected, strict=True):
        assert relative_l2(g, e) <= tolerance(args, named, backward=True)


@pytest.mark.parametrize("shape", ["expanded", "transposed"])
def test_native_gradients_of_strange_output_gradients(shape):
    (x, hx, weights), named = problem(6, 5, 13, 21)
    inputs = leaves((x, hx, weights))
    output, _ = pk.ops.lstm(inputs[0], (inputs[1], inputs[2]), inputs[3:], backend="cpu")
    grad = torch.ones(()).expand(output.shape) if shape == "expanded" else torch.randn(21, 5, 6).transpose(0, 2)
    got = torch.autograd.grad(output, inputs, grad)
    doubles = leaves((x, hx, weights), torch.float64)
    exact, _ = reference.lstm(doubles[0], (doubles[1], doubles[2]), doubles[3:])
    for g, e in zip(got, torch.autograd.grad(exact, doubles, grad.double()), strict=True):
        assert relative_l2(g, e) <= tolerance((x, hx, weights), named, backward=True)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("used", [(0,), (1,), (0, 1)])
@pytest.mark.parametrize("batch", [1, 7])
def test_native_gradients_of_the_cell(bias, used, batch):
    (x, (h0, c0), weights), named = problem(1, batch, 13, 21, bias=bias)
    args = (x[0], (h0[0], c0[0]), weights)
    results = []
    for dtype, backend in ((torch.float32, "cpu"), (torch.float64, "reference")):
        inputs = leaves(args, dtype)
        outputs = pk.ops.lstm_cell(inputs[0], (inputs[1], inputs[2]), *inputs[3:], backend=backend)
        results.append(torch.autograd.grad([outputs[i] for i in used], inputs, [outputs[i].detach() for i in used]))
    for g, e in zip(*results, strict=True):
        assert relative_l2(g, e) <= tolerance(args, named, backward=True)


def test_gradients_only_where_wanted():
    (x, (h0, c0), weights), _ = problem(4, 3, 5, 6)
    weights[1].requires_grad_()
    output, _ = pk.ops.lstm(x, (h0, c0), weights, backend="cpu")
    output.sum().backward()
    assert weights[1].grad is not None
    assert all(t.grad is None for t in (x, h0, c0, weights[0]))
    assert not pk.ops.lstm(x, (h0, c0), [w.detach() for w in weights], backend="cpu")[0].requires_grad


def test_gradients_of_an_empty_batch():
    args, named = problem(4, 0, 5, 6)
    x, *_, w_ih, _, _, b_hh = gradients(leaves(args), named, "cpu")
    assert x.shape == (4, 0, 5)
    assert not w_ih.any()
    assert not b_hh.any()


@pytest.mark.parametrize("options", GRADIENTS)
def test_second_gradients(options):
    args, named = problem(3, 5, 4, 6, **options)

    def second(dtype: torch.dtype, backend: str) -> tuple[torch.Tensor, ...]:
        inputs = leaves(args, dtype)
        outputs = flat(pk.ops.lstm(inputs[0], (inputs[1], inputs[2]), inputs[3:], **named, backend=backend))
        first = torch.autograd.grad(sum(o.square().sum() for o in outputs), inputs, create_graph=True)
        return torch.autograd.grad(sum(f.square().sum() for f in first), inputs)

    for g, e in zip(second(torch.float32, "cpu"), second(torch.float64, "reference"), strict=True):
        assert relative_l2(g, e) <= 4 * tolerance(args, named, backward=True)  # two sweeps more, there and back


def test_create_graph_counts_shared_inputs_once():
    """h0 computed from x: the graph of the gradient of x must not run on through h0's history."""
    (x, _, weights), _ = problem(3, 2, 6, 6)

    def first(dtype: torch.dtype, backend: str, create_graph: bool) -> torch.Tensor:
        own = x.to(dtype).requires_grad_()
        h0 = (own[:1] * 2).contiguous()
        output, _ = pk.ops.lstm(own, (h0, h0), [w.to(dtype) for w in weights], backend=backend)
        return torch.autograd.grad(output.square().sum(), own, create_graph=create_graph)[0]

    exact = first(torch.float64, "reference", False)
    for create_graph in (False, True):
        torch.testing.assert_close(first(torch.float32, "cpu", create_graph).double(), exact, rtol=1e-4, atol=1e-5)


def test_gradient_without_a_reserve():
    """torch.ops called directly with save=False: the backward recomputes."""
    (x, (h0, c0), weights), _ = problem(4, 3, 5, 6)
    inputs = leaves((x, (h0, c0), weights))
    output = torch.ops.pykernels.lstm(*inputs[:3], inputs[3:], None, 1, False, False, True, False)[0]
    saved = torch.ops.pykernels.lstm(*inputs[:3], inputs[3:], None, 1, False, False, True, True)[0]
    for g, e in zip(torch.autograd.grad(output.sum(), inputs), torch.autograd.grad(saved.sum(), inputs), strict=True):
        torch.testing.assert_close(g, e)


# Bits and threads


def test_the_same_bits_every_time_forward_and_backward():
    args, named = problem(9, 6, 33, 45, num_layers=2, bidirectional=True)
    first = [*flat(pk.ops.lstm(*args, **named, backend="cpu")), *gradients(leaves(args), named, "cpu")]
    for _ in range(5):
        again = [*flat(pk.ops.lstm(*args, **named, backend="cpu")), *gradients(leaves(args), named, "cpu")]
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_eight_threads_at_once():
    args, named = problem(9, 6, 33, 45, num_layers=2, bidirectional=True)
    expected = [*flat(pk.ops.lstm(*args, **named, backend="cpu")), *gradients(leaves(args), named, "cpu")]
    wrong: list[str] = []

    def work() -> None:
        try:
            for _ in range(5):
                got = [*flat(pk.ops.lstm(*args, **named, backend="cpu")), *gradients(leaves(args), named, "cpu")]
                if not all(torch.equal(a, b) for a, b in zip(expected, got, strict=True)):
                    wrong.append("other bits")
        except Exception as problem:
            wrong.append(repr(problem))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong


@pytest.mark.parametrize("spec", [LSTM_SPEC, LSTM_CELL_SPEC], ids=lambda s: s.name)
def test_float64_and_float16_go_to_the_reference(spec):
    args, kwargs = spec.samples[0].make(torch.float64, torch.Generator().manual_seed(0))
    got, expected = spec.function(*args, **kwargs), spec.reference(*args, **kwargs)
    assert torch.equal(got[0], expected[0])
    with pytest.raises(RuntimeError, match=r"its kernels take torch\.float32, torch\.bfloat16, not torch\.float64"):
        spec.function(*args, **kwargs, backend="cpu")


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


@pytest.mark.parametrize("length", [0, 10, 127, 200])
def test_the_binding_refuses_a_short_block(length):
    (x, (h0, c0), _), _ = problem(1, 2, 5, 6)
    with pytest.raises(RuntimeError, match=r"pykernels\.lstm_cell_packed: packed: "):
        torch.ops.pykernels.lstm_cell_packed(x[0], h0[0], c0[0], torch.zeros(length, dtype=torch.uint8), 5, 6)
