"""`int8_lstm` and `int8_lstm_cell`: the reference against lstm's, the kernels against the reference to the bit."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.library import opcheck

import pykernels as pk
from pykernels.ops.int8_lstm import reference
from pykernels.ops.int8_lstm.spec import EXACT, quantized
from pykernels.ops.lstm import reference as float_reference
from pykernels.ops.lstm import spec as lstm_spec
from pykernels.ops.lstm.spec import flat_weights
from tests.harness import (
    assert_one_graph,
    assert_threads_change_nothing,
    eight_threads,
    forced_isa,
    host_isas,
    inputs_of,
    map_tensors,
    native,
    relative_l2,
    tensors_of,
)

OPS = torch.ops.pykernels
CASES = [
    pytest.param(spec, sample, id=f"{spec.name}-{sample.name}")
    for spec in EXACT
    for sample in spec.samples
    if not sample.bench
]
isas = pytest.mark.parametrize("isa", host_isas())


def assert_equal(got, expected):
    got, expected = tensors_of(got), tensors_of(expected)
    assert len(got) == len(expected)
    for g, e in zip(got, expected, strict=True):
        assert (g.dtype, g.shape) == (e.dtype, e.shape)
        assert torch.equal(g.nan_to_num(99), e.nan_to_num(99))


def problem(t=5, b=3, i=6, h=8, *, layers=1, both=False, bias=True, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    directions = 2 if both else 1
    x = torch.randn(t, b, i, generator=generator).to(dtype)
    states = tuple(torch.randn(layers * directions, b, h, generator=generator).to(dtype) for _ in range(2))
    weights = quantized(flat_weights(i, h, layers, directions, bias, torch.float32, generator))
    return (x, states, *weights), {"num_layers": layers, "bidirectional": both}


# The reference


@pytest.mark.parametrize(("spec", "sample"), CASES)
def test_the_reference_is_an_lstm_of_rounded_numbers(spec, sample):
    args, named = inputs_of(sample, torch.float32)
    x, states, *rest = args
    if spec.name == "int8_lstm":
        scales = iter(rest[1])
        weights = [w.double() * next(scales)[:, None] if w.dtype == torch.int8 else w.double() for w in rest[0]]
        expected = float_reference.lstm(x.double(), map_tensors(states, torch.Tensor.double), weights, **named)
    else:
        w_ih, w_hh, s_ih, s_hh, *biases = (t.double() for t in rest)
        weights = (w_ih * s_ih[:, None], w_hh * s_hh[:, None], *biases)
        expected = float_reference.lstm_cell(x.double(), map_tensors(states, torch.Tensor.double), *weights)
    # Rounding to steps of max / 127, of x and of h: at most 1 / 254 of the largest, here of a few numbers a row.
    for got, e in zip(tensors_of(reference_of(spec)(*args, **named)), tensors_of(expected), strict=True):
        assert relative_l2(got, e) < 0.04


def reference_of(spec):
    return {"int8_lstm": reference.int8_lstm, "int8_lstm_cell": reference.int8_lstm_cell}[spec.name]


def test_exact_curves_are_the_curves():
    x = torch.cat([torch.linspace(-80, 80, 100001), torch.linspace(-1, 1, 10001)])
    for ours, torchs, ulps in ((reference.exact_sigmoid, torch.sigmoid, 5), (reference.exact_tanh, torch.tanh, 4)):
        got, expected = ours(x).double(), torchs(x.double())
        normal = expected.abs() > 2.0**-126
        assert float(((got - expected).abs() / expected.abs())[normal].max()) < ulps * 2.0**-23
    ends = torch.tensor([-torch.inf, torch.inf, torch.nan, 0.0, -0.0, -1e30, 1e30])
    assert torch.equal(reference.exact_sigmoid(ends)[[0, 1, 3, 6]], torch.tensor([0.0, 1.0, 0.5, 1.0]))
    assert torch.equal(reference.exact_tanh(ends)[[0, 1, 3, 5, 6]], torch.tensor([-1.0, 1.0, 0.0, -1.0, 1.0]))
    assert reference.exact_sigmoid(ends)[2].isnan()
    assert reference.exact_tanh(ends)[2].isnan()


# The kernels


@native
@isas
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("spec", "sample"), CASES)
def test_the_kernels_have_the_references_bits(spec, sample, dtype, isa):
    args, named = inputs_of(sample, dtype)
    with forced_isa(isa):
        assert_equal(spec.function(*args, **named, backend="cpu"), reference_of(spec)(*args, **named))


@native
@settings(max_examples=60, deadline=None)
@given(
    sizes=st.tuples(st.integers(1, 5), st.integers(0, 14), st.integers(0, 40), st.integers(1, 40)),
    layers=st.integers(1, 2), both=st.booleans(), bias=st.booleans(), batch_first=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]), scale=st.sampled_from([1e-40, 1e-3, 1.0, 1e4, 1e38]),
    isa=st.sampled_from(host_isas()), seed=st.integers(0, 99),
)  # fmt: skip
def test_any_shape(sizes, layers, both, bias, batch_first, dtype, scale, isa, seed):
    (x, *rest), named = problem(*sizes, layers=layers, both=both, bias=bias, dtype=dtype, seed=seed)
    x = (x * scale).to(dtype)
    if batch_first:
        x = x.transpose(0, 1)
    with forced_isa(isa):
        got = pk.ops.int8_lstm(x, *rest, **named, batch_first=batch_first, backend="cpu")
    assert_equal(got, reference.int8_lstm(x, *rest, **named, batch_first=batch_first))


@native
@isas
def test_extremes(isa):
    (x, (h, c), weights, scales), named = problem(6, 8, 5, 20)
    x[2, 1, 0], x[3, 2, 1], x[3, 3, 1] = torch.nan, torch.inf, -3e38
    h[0, 4, 0], h[0, 5, 0], c[0, 6, 1] = torch.inf, -1e4, torch.inf
    weights[0][:, 0], weights[1][:7, 3] = -128, -128
    scales[1][9] = torch.inf
    x[4, 7] = 0
    with forced_isa(isa):
        got = pk.ops.int8_lstm(x, (h, c), weights, scales, **named, backend="cpu")
    expected = reference.int8_lstm(x, (h, c), weights, scales, **named)
    assert_equal(got, expected)
    assert expected[0][2:, 1].isnan().all()
    assert not expected[0][:, 0, :9].isnan().any()


@native
@isas
def test_strides_threads_and_the_batch_change_no_bit(isa):
    (x, states, *rest), named = problem(30, 6, 9, 260, both=True)
    with forced_isa(isa):
        expected = pk.ops.int8_lstm(x, states, *rest, **named)
        assert_threads_change_nothing(lambda: pk.ops.int8_lstm(x, states, *rest, **named), (1, 3))
        wide = torch.full((30, 6, 12), torch.nan)
        wide[..., :9] = x
        strided = map_tensors(states, lambda t: torch.stack((t, t), -1).flatten(-2)[..., ::2])
        assert_equal(pk.ops.int8_lstm(wide[..., :9], strided, *rest, **named), expected)
        alone = pk.ops.int8_lstm(x[:, 2], map_tensors(states, lambda t: t[:, 2]), *rest, **named)
        assert_equal(alone, (expected[0][:, 2], tuple(t[:, 2] for t in expected[1])))


@native
def test_a_sequence_may_be_cut():
    (x, states, *rest), named = problem(9, 3, 5, 21, layers=1)
    whole, ends = pk.ops.int8_lstm(x, states, *rest, **named)
    first, states = pk.ops.int8_lstm(x[:4], states, *rest, **named)
    second, states = pk.ops.int8_lstm(x[4:], states, *rest, **named)
    assert_equal((torch.cat((first, second)), states), (whole, ends))


@native
def test_a_step_is_a_cell():
    (x, (h, c), weights, scales), _ = problem(1, 3, 5, 21)
    got = pk.ops.int8_lstm_cell(x[0], (h[0], c[0]), *weights[:2], *scales, *weights[2:])
    output, (h_n, c_n) = pk.ops.int8_lstm(x, (h, c), weights, scales)
    assert_equal(got, (h_n[0], c_n[0]))
    assert_equal(output[0], got[0])


@pytest.mark.parametrize("missing", [0, 1], ids=["b_ih", "b_hh"])
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_a_cell_with_one_bias(missing, backend):
    (x, (h, c), weights, scales), _ = problem(1, 3, 5, 9)
    biases = weights[2:]
    zeros = [torch.zeros_like(b) if i == missing else b for i, b in enumerate(biases)]
    biases[missing] = None
    got, expected = (
        pk.ops.int8_lstm_cell(x[0], (h[0], c[0]), *weights[:2], *scales, *b, backend=backend) for b in (biases, zeros)
    )
    assert_equal(got, expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16], ids=str)
def test_other_dtypes_run_as_plain_pytorch(dtype):
    (x, states, *rest), named = problem(dtype=dtype)
    output, (h, c) = pk.ops.int8_lstm(x, states, *rest, **named)
    assert output.dtype == h.dtype == c.dtype == dtype
    expected, _ = pk.ops.int8_lstm(x.float(), map_tensors(states, torch.Tensor.float), *rest, **named)
    assert torch.equal(output, expected.to(dtype))


# Torch's machinery


@native
def test_opcheck():
    (x, (h, c), weights, scales), _ = problem(layers=2, both=True)
    opcheck(OPS.int8_lstm.default, (x, h, c, weights, scales, None, 2, True, False, True))
    packed = OPS.int8_lstm_pack(weights, scales, 2, True, True)
    opcheck(OPS.int8_lstm_packed.default, (x, h, c, packed, 6, 8, None, 2, True, False))
    (x, (h, c), weights, scales), _ = problem()
    opcheck(OPS.int8_lstm_cell.default, (x[0], h[0], c[0], *weights[:2], *scales, *weights[2:]))
    packed = OPS.int8_lstm_pack(weights, scales, 1, False, True)
    opcheck(OPS.int8_lstm_cell_packed.default, (x[0], h[0], c[0], packed, 6, 8))


@native
@pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
def test_compiles_whole_and_once_for_all_batches(compiler):
    def run(x, h, c, weights, scales):
        return pk.ops.int8_lstm(x, (h, c), weights, scales, num_layers=2)[0]

    calls = []
    for b in (3, 4, 5):
        (x, (h, c), *rest), _ = problem(b=b, layers=2)
        calls.append((x, h, c, *rest))
    assert_one_graph(run, calls, compiler)


@native
def test_autocast_casts_x_and_the_states():
    (x, states, *rest), named = problem()
    with torch.autocast("cpu", torch.bfloat16):
        got = pk.ops.int8_lstm(x, states, *rest, **named)
        native_op = OPS.int8_lstm(x, *states, *rest, None, 1, False, False, True)
    expected = pk.ops.int8_lstm(x.bfloat16(), map_tensors(states, torch.Tensor.bfloat16), *rest, **named)
    assert_equal(got, expected)
    assert_equal(native_op, (expected[0], *expected[1]))


@native
def test_eight_python_threads_at_once():
    args, named = problem(20, 2, 8, 70)
    expected = pk.ops.int8_lstm(*args, **named)
    eight_threads(lambda _: [assert_equal(pk.ops.int8_lstm(*args, **named), expected) for _ in range(10)])


# Refusals; tests/ops/test_dialect.py has those of every op


@pytest.mark.parametrize("name", ["x", "h0", "scales[0]", "weights[2]"])
def test_no_gradient(name):
    (x, states, weights, scales), named = problem()
    {"x": x, "h0": states[0], "scales[0]": scales[0], "weights[2]": weights[2]}[name].requires_grad_()
    message = rf"^pykernels\.int8_lstm: {name.replace('[', '.').replace(']', '.')}: expected a tensor that requires no"
    with pytest.raises(RuntimeError, match=message):
        pk.ops.int8_lstm(x, states, weights, scales, **named)
    with torch.no_grad():
        pk.ops.int8_lstm(x, states, weights, scales, **named)


@native
def test_the_native_op_has_no_gradient():
    (x, (h, c), *rest), _ = problem()
    output, *_ = OPS.int8_lstm(x.requires_grad_(), h, c, *rest, None, 1, False, False, True)
    with pytest.raises(RuntimeError, match=r"^pykernels.int8_lstm: quantisation has no gradient"):
        output.sum().backward()


def test_bad_arguments():
    (x, states, weights, scales), _ = problem()
    for bad, named, error, says in (
        ((x, states, weights[:3], scales), {}, ValueError, "weights: expected 4 tensors, or 2 without biases"),
        ((x, states, weights, scales[:1]), {}, ValueError, "scales: expected 2 tensors, got 1"),
        ((x, states, weights, [scales[0], scales[1][1:]]), {}, ValueError, r"scales\[1\]: expected shape \(32,\)"),
        ((x, states, weights[0], scales), {}, TypeError, "weights: expected a sequence of tensors, got Tensor"),
        ((x, states, weights, None), {}, TypeError, "scales: expected a sequence of tensors, got NoneType"),
        ((x, states, weights, scales), {"num_layers": 0}, ValueError, "num_layers: expected an int >= 1"),
        ((x[:0], states, weights, scales), {}, ValueError, "x: expected at least one time step"),
        ((x.bfloat16(), states, weights, scales), {}, TypeError, "h0: expected x's dtype torch.bfloat16"),
        ((x, states[:1], weights, scales), {}, TypeError, r"states: expected a pair \(h, c\)"),
        ((x[0], states, weights, scales), {"batch_sizes": torch.tensor([1, 2])}, ValueError, "batch_sizes: expected s"),
    ):
        with pytest.raises(error, match=f"^pykernels.int8_lstm: {says}"):
            pk.ops.int8_lstm(*bad, **named)
    wide = torch.zeros(4, 131072, dtype=torch.int8)
    narrow, one = torch.zeros(4, 1, dtype=torch.int8), torch.ones(4)
    with pytest.raises(ValueError, match="w_ih: expected at most 131071 columns, beyond which int32 sums may wrap"):
        pk.ops.int8_lstm_cell(torch.zeros(1, 131072), (torch.zeros(1, 1),) * 2, wide, narrow, one, one)
    for backend in ("cuda", "triton"):
        with pytest.raises(RuntimeError, match="waits for its grid"):
            pk.ops.int8_lstm(x, states, weights, scales, backend=backend)


@native
def test_bad_arguments_of_the_native_ops():
    (x, (h, c), weights, scales), _ = problem()
    rest = (None, 1, False, False, True)
    with pytest.raises(RuntimeError, match=r"int8_lstm: weights\[0\] \(w_ih\): expected .*"):
        OPS.int8_lstm(x, h, c, [weights[0].float(), *weights[1:]], scales, *rest)
    with pytest.raises(RuntimeError, match=r"int8_lstm: scales\[1\]: expected"):
        OPS.int8_lstm(x, h, c, weights, [scales[0], scales[1].double()], *rest)
    with pytest.raises(RuntimeError, match="int8_lstm: scales: expected 2 tensors, got 1"):
        OPS.int8_lstm(x, h, c, weights, scales[:1], *rest)
    with pytest.raises(RuntimeError, match="int8_lstm_cell: s_hh: expected"):
        OPS.int8_lstm_cell(x[0], h[0], c[0], *weights[:2], scales[0], scales[1][1:], None, None)
    with pytest.raises(RuntimeError, match="int8_lstm_cell: b_hh: expected both biases or none"):
        OPS.int8_lstm_cell(x[0], h[0], c[0], *weights[:2], *scales, weights[2], None)
    packed = OPS.int8_lstm_pack(weights, scales, 1, False, True)
    for bad, says in (
        (packed[:-1], "truncated"),
        (packed[:5], "too short"),
        (packed.flip(0), "the first bytes are others"),
        (packed.float(), "expected"),
    ):
        with pytest.raises(RuntimeError, match=f"int8_lstm_packed: packed: .*{says}"):
            OPS.int8_lstm_packed(x, h, c, bad, 6, 8, None, 1, False, False)
    with pytest.raises(RuntimeError, match="int8_lstm_packed: x: expected 7 features"):
        OPS.int8_lstm_packed(x, h, c, packed, 7, 8, None, 1, False, False)


# weight_only: tests/ops/test_specs.py compares its samples with the reference


@native
@settings(max_examples=50, deadline=None)
@given(
    sizes=st.tuples(st.integers(1, 30), st.integers(0, 14), st.integers(0, 40), st.integers(1, 40)),
    layers=st.integers(1, 2), both=st.booleans(), bias=st.booleans(), batch_first=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]), isa=st.sampled_from(host_isas()), seed=st.integers(0, 99),
)  # fmt: skip
def test_weight_only_is_lstm_of_what_the_weights_stand_for(
    sizes, layers, both, bias, batch_first, dtype, isa, seed
):  # fmt: skip
    (x, states, weights, scales), named = problem(*sizes, layers=layers, both=both, bias=bias, dtype=dtype, seed=seed)
    floats = reference.scaled(weights, scales, torch.float64)
    expected = float_reference.lstm(x.double(), map_tensors(states, torch.Tensor.double), floats, **named)
    if batch_first:
        x, expected = x.transpose(0, 1).contiguous(), (expected[0].transpose(0, 1), expected[1])
    with forced_isa(isa):
        got = pk.ops.int8_lstm(
            x, states, weights, scales, **named, batch_first=batch_first, weight_only=True, backend="cpu"
        )
    limit = lstm_spec.bound((x, states, floats), named)
    for g, e in zip(tensors_of(got), tensors_of(expected), strict=True):
        assert (g.shape, g.dtype) == (e.shape, dtype)
        assert relative_l2(g, e) <= limit


@native
@isas
def test_strides_and_threads_change_no_bit_of_weight_only(isa):
    (x, states, *rest), named = problem(30, 6, 9, 260, both=True)
    named["weight_only"] = True
    with forced_isa(isa):
        expected = pk.ops.int8_lstm(x, states, *rest, **named)
        assert_threads_change_nothing(lambda: pk.ops.int8_lstm(x, states, *rest, **named), (1, 3))
        wide = torch.full((30, 6, 12), torch.nan)
        wide[..., :9] = x
        assert_equal(pk.ops.int8_lstm(wide[..., :9], states, *rest, **named), expected)


@native
def test_a_weight_only_step_is_a_cell():
    (x, (h, c), weights, scales), _ = problem(1, 3, 5, 21)
    got = pk.ops.int8_lstm_cell(x[0], (h[0], c[0]), *weights[:2], *scales, *weights[2:], weight_only=True)
    output, (h_n, c_n) = pk.ops.int8_lstm(x, (h, c), weights, scales, weight_only=True)
    assert_equal(got, (h_n[0], c_n[0]))
    assert_equal(output[0], got[0])
    rounded, _ = pk.ops.int8_lstm_cell(x[0], (h[0], c[0]), *weights[:2], *scales, *weights[2:])
    assert not torch.equal(rounded, got[0])


@native
def test_opcheck_of_weight_only():
    (x, (h, c), weights, scales), _ = problem(layers=2, both=True)
    opcheck(OPS.int8_lstm.default, (x, h, c, weights, scales, None, 2, True, False, True, True))
    packed = OPS.int8_lstm_pack(weights, scales, 2, True, True, True)
    opcheck(OPS.lstm_packed.default, (x, h, c, packed, 6, 8, None, 2, True, False))
    with pytest.raises(RuntimeError, match=r"int8_lstm_packed: packed: .*the first bytes are others"):
        OPS.int8_lstm_packed(x, h, c, packed, 6, 8, None, 2, True, False)
    with pytest.raises(RuntimeError, match="lstm_packed: packed: not a block"):
        OPS.lstm_packed(x, h, c, OPS.int8_lstm_pack(weights, scales, 2, True, True), 6, 8, None, 2, True, False)
