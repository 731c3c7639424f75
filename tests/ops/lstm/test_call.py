"""`lstm` and `lstm_cell` forward: the public functions, and the CPU kernels on any shape and stride and at extremes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import pykernels as pk
from pykernels.ops.lstm import reference
from pykernels.ops.lstm.spec import LSTM_CELL_SPEC, bound
from tests.harness import eight_threads, forced_isa, host_isas, native, relative_l2, to_double
from tests.ops.lstm.checks import (
    BACKENDS,
    assert_close,
    assert_equal,
    assert_near,
    cell_problem,
    check_forward,
    flat,
    gradients,
    leaves,
    problem,
    run,
    strided,
)

isas = pytest.mark.parametrize("isa", host_isas())

# The public functions


@pytest.mark.parametrize("backend", BACKENDS)
def test_unbatched_is_a_batch_of_one(backend):
    (x, (h0, c0), weights), named = problem(5, 1, 6, 7, num_layers=2, bidirectional=True)
    got = pk.ops.lstm(x[:, 0], (h0[:, 0], c0[:, 0]), weights, **named, backend=backend)
    expected = pk.ops.lstm(x, (h0, c0), weights, **named, backend=backend)
    assert_equal(flat(got), [e.squeeze(1) for e in flat(expected)])


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
        assert_close(flat(got), expected, 2 * bound((x, hx, weights), named), torch.float32)  # two that round


@pytest.mark.parametrize("backend", BACKENDS)
def test_dropout_only_in_training_and_not_after_the_last_layer(backend):
    for layers, training in ((2, False), (1, True)):
        args, named = problem(4, 3, 5, 8, num_layers=layers)
        plain = pk.ops.lstm(*args, **named, backend=backend)
        dropped = pk.ops.lstm(*args, **named, dropout=0.9, training=training, backend=backend)
        assert_equal(flat(dropped), flat(plain))


@pytest.mark.parametrize("backend", BACKENDS)
def test_dropout_of_everything_leaves_the_second_layer_without_input(backend):
    args, named = problem(4, 3, 5, 8, num_layers=2)
    _, (h, c), weights = args
    got = pk.ops.lstm(*args, **named, dropout=1.0, training=True, backend=backend)
    second = pk.ops.lstm(torch.zeros(4, 3, 8), (h[1:], c[1:]), weights[4:], backend=backend)
    assert relative_l2(got[0], second[0]) <= 2 * bound(args, named)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("missing", [0, 1], ids=["b_ih", "b_hh"])
def test_cell_with_one_bias(backend, missing):
    x, states, (w_ih, w_hh, *biases) = cell_problem(2, 5, 6)
    biases[missing] = None
    got = pk.ops.lstm_cell(x, states, w_ih, w_hh, *biases, backend=backend)
    expected = torch.lstm_cell(x, states, w_ih, w_hh, *biases)
    assert_close(got, expected, 2 * LSTM_CELL_SPEC.bound(torch.float32, 5 + 6), torch.float32)


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_features(backend):
    args, named = problem(4, 2, 0, 3)
    x, states, weights = args
    expected, _, _ = torch.lstm(x, states, weights, True, 1, 0.0, False, False, False)
    x.requires_grad_()
    y, _ = pk.ops.lstm(x, states, weights, backend=backend)
    y.sum().backward()
    assert x.grad.shape == x.shape
    assert relative_l2(y, expected) <= 2 * bound(args, named)


# Any shape and stride

STRIDES = st.sampled_from(["plain", "transposed", "gaps", "rows"])


def drawn_strides(draw, args):
    x, (h0, c0), weights = args
    states = strided(h0, draw(STRIDES)), strided(c0, draw(STRIDES))
    return strided(x, draw(STRIDES)), states, [strided(w, draw(STRIDES)) if w.dim() == 2 else w for w in weights]


@native
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_shape_and_stride(data):
    draw = data.draw
    packed, time = draw(st.booleans()), draw(st.integers(1, 6))
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
        dtype=draw(st.sampled_from([torch.float32, torch.bfloat16])),
    )
    args = drawn_strides(draw, args)
    assert_near(flat(pk.ops.lstm(*args, **named, backend="cpu")), args, named)


@native
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_cell_of_any_shape_and_stride(data):
    draw, width = data.draw, st.integers(1, 70)
    options = {"bias": draw(st.booleans()), "dtype": draw(st.sampled_from([torch.float32, torch.bfloat16]))}
    x, (h, c), weights = drawn_strides(
        draw, cell_problem(draw(st.integers(0, 70)), draw(width), draw(width), **options)
    )
    got = pk.ops.lstm_cell(x, (h, c), *weights, backend="cpu")
    named = {"bidirectional": False, "batch_first": False}
    assert_near([t[None] for t in (got[0], *got)], (x[None], (h[None], c[None]), weights), named)


@native
@pytest.mark.parametrize("hidden", [1, 8])
def test_terms_that_cancel(hidden):
    """c' = f c + i g = 0 up to rounding, so no error of c' or h' is small beside it."""
    (x, (h0, c0), weights), named = problem(1, 1, 5, hidden)
    for _ in range(3):
        x64, states64, weights64 = to_double((x, (h0, torch.zeros_like(c0)), weights))
        _, (_, ig) = reference.lstm(x64, states64, weights64)
        _, (_, f) = reference.lstm(x64, (states64[0], torch.ones_like(ig)), weights64)
        c0 = (-ig / (f - ig)).float()
        args = x, (h0, c0), weights
        assert_near(flat(pk.ops.lstm(*args, **named, backend="cpu")), args, named)
        x = x + 0.1


@native
def test_expanded_input_and_states():
    (x, (h0, c0), weights), named = problem(4, 3, 5, 6)
    args = (x[:1, :1].expand(4, 3, 5), (h0[:, :1].expand(1, 3, 6), c0[:, :1].expand(1, 3, 6)), weights)
    check_forward(args, named)


# Extremes


@native
@isas
@pytest.mark.parametrize("scale", [1e-30, 1e4, 1e18, 1e38])
def test_gates_from_closed_to_saturated(isa, scale):
    (x, hx, weights), named = problem(5, 3, 17, 19)
    with forced_isa(isa):
        check_forward((x * scale, hx, weights), named)


@native
@isas
@pytest.mark.parametrize("value", [float("inf"), -float("inf")])
def test_infinite_input_saturates_the_gates(isa, value):
    args, named = problem(5, 3, 17, 19)
    args[0][2, 1, 4] = value
    with forced_isa(isa):
        check_forward(args, named)


@native
@isas
@pytest.mark.parametrize("where", ["x", "h0", "c0"])
def test_nan_stays_in_its_sequence(isa, where):
    args, named = problem(5, 3, 17, 19)
    x, (h0, c0), _ = args
    clean = flat(pk.ops.lstm(*args, backend="cpu"))
    {"x": x[2], "h0": h0[0], "c0": c0[0]}[where][1, 3] = float("nan")
    with forced_isa(isa):
        got = flat(pk.ops.lstm(*args, backend="cpu"))
        check_forward(args, named, got)
    # The others are summed in another order where the ISA is another.
    for g, c in zip(got, clean, strict=True):
        assert relative_l2(g[:, [0, 2]], c[:, [0, 2]]) <= 2 * bound(args, named)
    assert got[0][-1, 1].isnan().all()


@native
@isas
def test_denormal_states(isa):
    (x, (h0, c0), weights), named = problem(5, 3, 17, 19)
    with forced_isa(isa):
        check_forward((x * 1e-40, (h0 * 1e-40, c0 * 1e-40), [w * 1e-40 for w in weights]), named)


@native
def test_infinite_cell_state():
    args, named = problem(3, 2, 5, 6)
    c0 = args[1][1]
    c0[0, 0, 0], c0[0, 1, 2] = float("inf"), -float("inf")
    check_forward(args, named)


# Bits and threads


@pytest.fixture
def both_ways():
    """Outputs and gradients of one problem, computed anew at each call."""
    args, named = problem(9, 6, 33, 45, num_layers=2, bidirectional=True)

    def compute():
        inputs = leaves(args)
        outputs = run(inputs, named, "cpu")
        return [*outputs, *gradients(outputs, inputs)]

    return compute


@native
def test_the_same_bits_every_time_forward_and_backward(both_ways):
    first = both_ways()
    for _ in range(5):
        assert_equal(both_ways(), first)


@native
def test_eight_threads_at_once(both_ways):
    expected = both_ways()
    eight_threads(lambda _: [assert_equal(both_ways(), expected) for _ in range(5)])
