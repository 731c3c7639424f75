"""int8_matmul and quantize_int8: what the specs' samples do not say."""

from __future__ import annotations

import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.library import opcheck

import pykernels as pk
from pykernels import _native
from pykernels.ops.int8_matmul import int8_linear
from pykernels.ops.int8_matmul.arguments import MAX_K, MAX_K_WITH_ZERO_POINT
from pykernels.ops.int8_matmul.reference import int8_matmul_reference, quantize_int8_reference
from tests.harness import forced_isa, host_isas, relative_l2

native = pytest.mark.skipif(_native.error is not None, reason=f"no native library: {_native.error}")
_no_cuda = _native.why_not("cuda", torch.device("cuda"))
cuda = pytest.mark.skipif(_no_cuda is not None, reason=f"needs a GPU: {_no_cuda}")
ISAS = pytest.mark.parametrize("isa", host_isas())
BACKENDS = pytest.mark.parametrize("backend", ["auto", "reference"])

int8_matmul, quantize_int8 = pk.ops.int8_matmul, pk.ops.quantize_int8


def integers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(-128, 128, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.int8)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def strided(t: torch.Tensor, kind: str) -> torch.Tensor:
    if kind == "transposed":
        return t.t().contiguous().t()
    if kind == "sliced":
        return torch.stack((t, torch.full_like(t, 77)), -1).flatten(-2)[:, ::2]
    if kind == "offset":  # rows further apart than they are long, at an odd address
        return torch.nn.functional.pad(t, (1, 2))[:, 1 : 1 + t.shape[1]]
    if kind == "expanded":
        return t[:, :1].expand_as(t)
    return t


# -- exact sums


@BACKENDS
@pytest.mark.parametrize(("m", "k", "n"), [(17, 24, 32), (64, 128, 40), (32, 8, 8)])
def test_equals_torch_int_mm(backend, m, k, n):
    a, b = integers(m, k), integers(k, n, seed=1)
    assert torch.equal(int8_matmul(a, b, backend=backend), torch._int_mm(a, b))


@native
@ISAS
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_shape_strides_and_zero_points_are_exact(isa, data):
    size = st.one_of(st.integers(0, 20), st.integers(0, 140))
    m, k, n = data.draw(size), data.draw(st.one_of(size, st.integers(500, 1100))), data.draw(size)
    kinds = st.sampled_from(["contiguous", "transposed", "sliced", "offset", "expanded"])
    values = data.draw(st.sampled_from([(-128, 128), (-128, -127), (127, 128)]))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))
    a = torch.randint(*values, (m, k), generator=generator, dtype=torch.int8)
    b = torch.randint(-128, 128, (k, n), generator=generator, dtype=torch.int8)
    if k > 0:
        a = strided(a, data.draw(kinds))
    if n > 0:
        b = strided(b, data.draw(kinds))
    zero = None
    if data.draw(st.booleans()):
        zero = torch.randint(-128, 128, (m,), generator=generator, dtype=torch.int32)
    left = a.long() if zero is None else a.long() - zero[:, None]
    with forced_isa(isa):
        got = int8_matmul(a, b, a_zero_point=zero, backend="cpu")
        packed = torch.ops.pykernels.int8_pack(b)
        also = torch.ops.pykernels.int8_matmul_packed(a, packed, n, None, None, zero, None, 0, torch.int32)
    assert torch.equal(got.long(), left @ b.long())
    assert torch.equal(also, got)


@BACKENDS
def test_the_longest_sums_do_not_wrap(backend):
    ones = torch.full((1, MAX_K), -128, dtype=torch.int8)
    assert int8_matmul(ones, ones.t(), backend=backend).item() == MAX_K * 2**14
    ones = ones[:, :MAX_K_WITH_ZERO_POINT]
    zero = torch.tensor(127, dtype=torch.int32)
    assert int8_matmul(ones, ones.t(), a_zero_point=zero, backend=backend).item() == MAX_K_WITH_ZERO_POINT * 255 * 128


# -- epilogue


@native
@ISAS
def test_special_scales_and_biases(isa):
    inf, nan = float("inf"), float("nan")
    a, b = integers(3, 8), integers(8, 70, seed=1)
    a[0] = 0
    scale = torch.tensor([1.0, 1e-45, 3e38])
    bias = torch.zeros(70)
    bias[0], bias[1], bias[2], bias[69] = inf, -inf, nan, nan
    with forced_isa(isa):
        for out_dtype in (torch.float32, torch.bfloat16, torch.int8):
            for activation in ("none", "relu", "hardswish"):
                options = {"a_scale": scale, "bias": bias, "activation": activation, "out_dtype": out_dtype}
                got, expected = int8_matmul(a, b, **options, backend="cpu"), int8_matmul_reference(a, b, **options)
                assert torch.equal(got.float().isnan(), expected.float().isnan())
                torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-44, equal_nan=True)


@native
@ISAS
def test_int8_output_rounds_to_even_and_saturates(isa):
    a = torch.tensor([[1], [-1], [127], [-128]], dtype=torch.int8)
    b = torch.tensor([[1, 3, 5, 127, -128]], dtype=torch.int8)
    with forced_isa(isa):
        got = int8_matmul(a, b, a_scale=torch.tensor(0.5), out_dtype=torch.int8, backend="cpu")
    assert got.tolist() == [
        [0, 2, 2, 64, -64],
        [0, -2, -2, -64, 64],
        [64, 127, 127, 127, -128],
        [-64, -128, -128, -128, 127],
    ]


def test_scale_shapes_mean_the_same():
    a, b = integers(6, 9), integers(9, 5, seed=1)
    rows, columns = torch.rand(6), torch.rand(5)
    expected = int8_matmul(a, b, a_scale=rows, b_scale=columns, out_dtype=torch.float32)
    for r in (rows, rows[:, None], rows.double().float(), torch.stack((rows, rows), 1)[:, 0]):
        for c in (columns, columns[None], torch.stack((columns, columns), 1)[:, 0]):
            assert torch.equal(int8_matmul(a, b, a_scale=r, b_scale=c, out_dtype=torch.float32), expected)
    for one in (torch.tensor(0.5), torch.tensor([0.5]), torch.tensor([[0.5]])):
        got = int8_matmul(a, b, a_scale=one, out_dtype=torch.float32)
        assert torch.equal(got, 0.5 * int8_matmul(a, b).float())


def test_float16_output_is_the_reference_on_a_cpu():
    a, b, scale = integers(4, 6), integers(6, 3, seed=1), torch.rand(3) / 100
    got = int8_matmul(a, b, b_scale=scale, out_dtype=torch.float16)
    assert torch.equal(got, ((a.double() @ b.double()).float() * scale).half())


def test_float64_scales_run_in_float64():
    a, b, scale = integers(4, 6), integers(6, 3, seed=1), torch.rand(3, dtype=torch.float64)
    got = int8_matmul(a, b, b_scale=scale, out_dtype=torch.float32)
    assert torch.equal(got, ((a.double() @ b.double()) * scale).float())


@native
def test_inputs_stay_as_they_are():
    a, b, x = integers(40, 70), integers(70, 33, seed=1), normal(40, 70)
    copies = a.clone(), b.clone(), x.clone()
    int8_matmul(a, b)
    quantize_int8(x, axis=0)
    int8_linear(x, b.t(), torch.rand(33))
    assert all(torch.equal(t, c) for t, c in zip((a, b, x), copies, strict=True))


# -- quantisation


def assert_same_quantisation(got, expected):
    assert torch.equal(got[0], expected[0])
    torch.testing.assert_close(got[1], expected[1], rtol=0, atol=0, equal_nan=True)
    assert torch.equal(got[2], expected[2])


@native
@ISAS
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_quantisation_equals_the_reference_to_the_bit(isa, data):
    shape = data.draw(st.lists(st.integers(0, 24), max_size=4))
    axis = data.draw(st.one_of(st.none(), st.integers(-len(shape), len(shape) - 1))) if shape else None
    values = st.one_of(
        st.floats(width=32), st.floats(-4, 4, width=32), st.sampled_from([0.0, -0.0, 1e-45, -1e-40, 3.4e38, -3.4e38])
    )
    few = torch.tensor(data.draw(st.lists(values, min_size=1, max_size=6)), dtype=torch.float32)
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))
    x = few[torch.randint(0, len(few), shape, generator=generator)]
    x = (x * torch.rand(shape, generator=generator)).to(data.draw(st.sampled_from([torch.float32, torch.bfloat16])))
    symmetric = data.draw(st.booleans())
    with forced_isa(isa):
        got = quantize_int8(x, axis=axis, symmetric=symmetric, backend="cpu")
    assert_same_quantisation(got, quantize_int8_reference(x, axis=axis, symmetric=symmetric))


@BACKENDS
@pytest.mark.parametrize("symmetric", [True, False])
def test_dequantised_is_within_half_a_step(backend, symmetric):
    x = normal(50, 333) * torch.logspace(-20, 20, 50)[:, None]
    q, scale, zero_point = quantize_int8(x, axis=0, symmetric=symmetric, backend=backend)
    back = (q.float() - zero_point[:, None]) * scale[:, None]
    assert ((back - x).abs() <= 0.5001 * scale[:, None]).all()
    assert q.abs().max() <= 127 or not symmetric


@BACKENDS
@pytest.mark.parametrize("symmetric", [True, False])
def test_zero_nan_and_infinity(backend, symmetric):
    inf, nan = float("inf"), float("nan")
    x = torch.tensor([[0.0, 0.0, -0.0], [1.0, nan, 2.0], [1.0, -inf, 2.0], [inf, nan, 0.0], [1.0, -1.0, 0.0]])
    q, scale, zero_point = quantize_int8(x, axis=0, symmetric=symmetric, backend=backend)
    assert q[:4].abs().max() == 0
    assert zero_point[:4].tolist() == [0, 0, 0, 0]
    assert scale[0] == 1
    assert scale[1].isnan()
    assert scale[2] == inf
    assert scale[3].isnan()
    back = (q[4].float() - zero_point[4]) * scale[4]
    assert back[2] == 0
    torch.testing.assert_close(back, x[4], rtol=0, atol=0.5001 * scale[4].item())


def test_quantisation_of_other_dtypes():
    x = normal(5, 40)
    half = quantize_int8(x.half(), axis=0)
    assert_same_quantisation(half, quantize_int8(x.half().float(), axis=0))
    double = quantize_int8(x.double(), axis=0)
    assert double[1].dtype == torch.float64


@native
@ISAS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("m", "k", "n"), [(1, 40, 33), (7, 515, 70), (120, 64, 300), (0, 5, 3), (4, 0, 3), (4, 5, 0)])
def test_linear_is_quantisation_and_product(isa, dtype, m, k, n):
    x, w, scale, bias = normal(m, k).to(dtype), integers(n, k), torch.rand(n) / 100, normal(n, seed=2)
    with forced_isa(isa):
        q, x_scale, _ = quantize_int8(x, axis=0)
        expected = int8_matmul(
            q, w.t(), a_scale=x_scale, b_scale=scale, bias=bias, activation="gelu", out_dtype=dtype, backend="cpu"
        )
        packed = torch.ops.pykernels.int8_pack(w.t())
        assert torch.equal(int8_linear(x, w, scale, bias, "gelu", backend="cpu"), expected)
        assert torch.equal(int8_linear(x, w, scale, bias, "gelu", packed=packed, backend="cpu"), expected)
        if k > 0:
            assert torch.equal(int8_linear(strided(x, "sliced"), w, scale, bias, "gelu", backend="cpu"), expected)


# -- gradients


@pytest.mark.parametrize("activation", ["none", "gelu", "silu"])
def test_gradients_of_scales_and_bias(activation):
    a, b = integers(4, 6), integers(6, 5, seed=1)
    generator = torch.Generator().manual_seed(3)
    leaves = [torch.rand(n, generator=generator, dtype=torch.float64) for n in (4, 5, 5)]
    leaves = [(t / (1000 if i == 0 else 1)).requires_grad_() for i, t in enumerate(leaves)]

    def f(a_scale, b_scale, bias):
        y = int8_matmul_reference(
            a, b, a_scale=1e-3 + a_scale, b_scale=b_scale, bias=bias, activation=activation, out_dtype=torch.float64
        )
        return y

    assert torch.autograd.gradcheck(f, leaves)


@native
@pytest.mark.parametrize("given", [(True, True, True), (True, False, False), (False, False, True)])
def test_native_gradients_equal_the_reference(given):
    a, b = integers(7, 30), integers(30, 40, seed=1)
    zero = integers(7, seed=4).int()
    shapes, sizes = ((7, 1), (40,), (40,)), (1e-3, 0.1, 1)

    def run(backend):
        leaves = [
            (torch.rand(s, generator=torch.Generator().manual_seed(i)) * size).requires_grad_(g)
            for i, (s, size, g) in enumerate(zip(shapes, sizes, given, strict=True))
        ]
        y = int8_matmul(
            a, b, a_scale=leaves[0], b_scale=leaves[1], bias=leaves[2], a_zero_point=zero, activation="silu",
            out_dtype=torch.float32, backend=backend,
        )  # fmt: skip
        wanted = [t for t in leaves if t.requires_grad]
        first = torch.autograd.grad(y.square().sum(), wanted, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), wanted)
        return first + second

    for got, expected in zip(run("cpu"), run("reference"), strict=True):
        assert relative_l2(got, expected) < 32 * 2.0**-24  # a few roundings, through two derivatives


# -- as a PyTorch operator

OPS = torch.ops.pykernels


@native
@pytest.mark.parametrize("m", [0, 1, 9])
def test_opcheck(m):
    a, b, x = integers(m, 12), integers(12, 33), normal(m, 12)
    a_scale, b_scale, bias = torch.rand(m), torch.rand(33), torch.rand(33)
    packed = OPS.int8_pack(b)
    opcheck(OPS.int8_matmul, (a, b, None, None, torch.tensor(3, dtype=torch.int32), None, 0, torch.int32))
    leaves = [t.clone().requires_grad_() for t in (a_scale, b_scale, bias)]
    opcheck(OPS.int8_matmul, (a, b.t().contiguous().t(), *leaves[:2], None, leaves[2], 7, torch.float32))
    opcheck(OPS.int8_matmul_packed, (a, packed, 33, a_scale, b_scale, None, bias, 1, torch.bfloat16))
    opcheck(OPS.int8_pack, (b,))
    opcheck(OPS.int8_linear, (x, b, b_scale, bias, 0))
    opcheck(OPS.int8_linear_packed, (x, packed, 33, b_scale, None, 0))
    for axis in (-1, 0, 1):
        opcheck(OPS.quantize_int8, (x, axis, axis != 0))


@native
@pytest.mark.parametrize(("k", "n", "expected"), [(64, 48, 48 * 68), (70, 33, 33 * 100 + 6), (0, 5, 20), (9, 0, 9)])
def test_the_packed_form_on_cuda_tells_k_by_its_size(k, n, expected):
    with FakeTensorMode(allow_non_fake_inputs=True):
        b = torch.empty(k, n, dtype=torch.int8, device="cuda")
        packed = OPS.int8_pack(b)
        assert (packed.shape, packed.dtype, packed.device.type) == ((expected,), torch.uint8, "cuda")
        x = torch.empty(3, k, dtype=torch.float16, device="cuda")
        y = OPS.int8_linear_packed(x, packed, n, torch.empty(n, device="cuda"), None, 0)
        assert (y.shape, y.dtype) == ((3, n), torch.float16)


@cuda
@pytest.mark.parametrize(("m", "k", "n"), [(1, 515, 70), (5, 64, 33), (16, 300, 40), (40, 130, 300), (300, 257, 129)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_packed_and_plain_are_the_same_on_cuda(dtype, m, k, n):
    x, w, scale, bias = (
        normal(m, k).to("cuda", dtype),
        integers(n, k).cuda(),
        torch.rand(n).cuda() / 100,
        normal(n).cuda(),
    )
    packed = OPS.int8_pack(w.t())
    y = int8_linear(x, w, scale, bias, "gelu", backend="cuda")
    assert torch.equal(int8_linear(x, w, scale, bias, "gelu", packed=packed, backend="cuda"), y)
    q, x_scale, _ = quantize_int8(x, axis=0, backend="cuda")
    options = {"a_scale": x_scale, "b_scale": scale, "bias": bias, "activation": "gelu", "out_dtype": dtype}
    assert torch.equal(int8_matmul(q, w.t(), **options, backend="cuda"), y)
    assert torch.equal(int8_matmul(q, w.t().contiguous(), **options, backend="cuda"), y)
    zero = integers(m).int().cuda()
    sums = OPS.int8_matmul_packed(q, packed, n, None, None, zero, None, 0, torch.int32)
    assert torch.equal(sums.cpu().long(), (q.cpu().long() - zero.cpu().long()[:, None]) @ w.cpu().long().t())
    with pytest.raises(RuntimeError, match="packed: its size"):
        OPS.int8_matmul_packed(q[:, 1:], packed, n, None, None, None, None, 0, torch.int32)


def composed(x: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    q, scale, zero_point = quantize_int8(x, axis=0, symmetric=False)
    return int8_matmul(q, b, a_scale=scale, a_zero_point=zero_point, out_dtype=torch.float32) + 1


@native
@pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
def test_compiles_whole_and_once_for_all_batches(compiler):
    torch._dynamo.reset()
    b = integers(20, 30)
    compiled = torch.compile(composed, fullgraph=True, backend=compiler, dynamic=True)
    for m in (5, 9, 17):
        x = normal(m, 20, seed=m)
        with torch._dynamo.config.patch(error_on_recompile=m > 5):
            assert torch.equal(compiled(x, b), composed(x, b))


@native
def test_exports():
    class Module(torch.nn.Module):
        def forward(self, x, b):
            return composed(x, b)

    x, b = normal(5, 20), integers(20, 30)
    batch = torch.export.Dim("batch", min=2, max=100)
    program = torch.export.export(Module(), (x, b), dynamic_shapes={"x": {0: batch}, "b": None})
    for m in (5, 11):
        x = normal(m, 20, seed=m)
        assert torch.equal(program.module()(x, b), composed(x, b))


@BACKENDS
def test_meta_tensors_have_the_right_shape(backend):
    a, b = integers(5, 6).to("meta"), integers(6, 7).to("meta")
    y = int8_matmul(a, b, backend=backend)
    assert (y.shape, y.dtype, y.device.type) == ((5, 7), torch.int32, "meta")
    q, scale, zero_point = quantize_int8(torch.empty(5, 6, device="meta"), axis=1, backend=backend)
    assert (q.dtype, tuple(scale.shape), zero_point.dtype) == (torch.int8, (6,), torch.int32)


@native
def test_the_number_of_threads_changes_nothing():
    a, b, x = integers(150, 700), integers(700, 900, seed=1), normal(150, 700)
    big = normal(1 << 18)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3, 8):
            torch.set_num_threads(threads)
            results.append(
                (
                    int8_matmul(a, b),
                    int8_matmul(a[:1], b),
                    int8_linear(x, b.t(), torch.ones(900)),
                    *quantize_int8(big),
                    *quantize_int8(x, axis=1),
                    OPS.int8_pack(b),
                )
            )
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(t, s) for t, s in zip(results[0], other, strict=True))
    assert torch.equal(results[0][0].long(), a.long() @ b.long())


@native
def test_eight_python_threads_at_once():
    problems = [(integers(3 + 20 * i, 300, seed=i), integers(300, 40 + i, seed=9)) for i in range(8)]
    expected = [int8_matmul(a, b) for a, b in problems]
    wrong = []

    def work(i):
        for _ in range(20):
            if not torch.equal(int8_matmul(*problems[i]), expected[i]):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong


# -- refusals: one message each

A, B = integers(4, 6), integers(6, 3)
ONE = torch.ones(())


@pytest.mark.parametrize(
    ("error", "message", "arguments"),
    [
        (TypeError, "a: expected a tensor, got list", {"a": [[1]]}),
        (TypeError, "b: expected torch.int8, got torch.uint8", {"b": B.byte()}),
        (ValueError, r"a: expected a matrix, got shape \(4,\)", {"a": A[:, 0]}),
        (ValueError, r"b: expected 6 rows, as a has columns, got shape \(5, 3\)", {"b": B[:5]}),
        (ValueError, "b: expected a's device cpu, got meta", {"b": B.to("meta")}),
        (ValueError, "a: expected at most 131071 columns", {"a": A[:, :1].expand(4, MAX_K + 1),
                                                            "b": B[:1].expand(MAX_K + 1, 3)}),
        (ValueError, "a: expected at most 65793 columns with a zero point",
         {"a": A[:, :1].expand(4, 65794), "b": B[:1].expand(65794, 3), "a_zero_point": ONE.int()}),
        (TypeError, "a_scale: expected a tensor, got float", {"a_scale": 0.5}),
        (TypeError, "b_scale: expected a floating dtype, got torch.int64", {"b_scale": ONE.long()}),
        (TypeError, "a_zero_point: expected torch.int32, got torch.int64", {"a_zero_point": ONE.long()}),
        (ValueError, r"a_scale: expected one element, \(4,\) or \(4, 1\), got shape \(3,\)",
         {"a_scale": torch.ones(3)}),
        (ValueError, r"b_scale: expected one element, \(3,\) or \(1, 3\), got shape \(3, 1\)",
         {"b_scale": torch.ones(3, 1)}),
        (ValueError, "b_scale: expected a's device cpu, got meta", {"b_scale": torch.ones(3, device="meta")}),
        (ValueError, r"bias: expected shape \(3,\), got \(1,\)", {"bias": torch.ones(1)}),
        (TypeError, "bias: expected a floating dtype, got torch.int32", {"bias": torch.ones(3).int()}),
        (TypeError, "bias: expected a tensor, got list", {"bias": [0.0]}),
        (ValueError, "bias: expected a's device cpu, got meta", {"bias": torch.ones(3, device="meta")}),
        (ValueError, "activation: expected one of none, relu", {"activation": "swish"}),
        (ValueError, "out_dtype: expected one of torch.int32, torch.float32", {"out_dtype": torch.float64}),
        (ValueError, "out_dtype: expected torch.float32, torch.bfloat16, torch.float16 or torch.int8, because",
         {"bias": torch.ones(3)}),
        (ValueError, "backend: expected one of auto", {"backend": "gpu"}),
        (RuntimeError, "backend='cuda' cannot run", {"backend": "cuda"}),
        (RuntimeError, r"a_zero_point: expected values in \[-128, 127\]", {"a_zero_point": 128 * ONE.int()}),
        (RuntimeError, r"a_zero_point: expected values in \[-128, 127\]",
         {"a_zero_point": -129 * ONE.int(), "backend": "reference"}),
    ],
)  # fmt: skip
def test_matmul_refuses(error, message, arguments):
    with pytest.raises(error, match=f"pykernels.*{message}"):
        int8_matmul(**{"a": A, "b": B, **arguments})


@pytest.mark.parametrize(
    ("error", "message", "arguments"),
    [
        (TypeError, "x: expected a tensor, got list", {"x": [1.0]}),
        (TypeError, "x: expected a floating dtype, got torch.int8", {"x": A}),
        (ValueError, r"axis: expected None or an axis of shape \(4, 6\), got 2", {"axis": 2}),
        (ValueError, r"axis: expected None or an axis of shape \(4, 6\), got 'rows'", {"axis": "rows"}),
        (RuntimeError, "x: expected a tensor that requires no gradient", {"x": torch.ones(3, requires_grad=True)}),
        (RuntimeError, "backend='cuda' cannot run", {"backend": "cuda"}),
    ],
)
def test_quantisation_refuses(error, message, arguments):
    with pytest.raises(error, match=f"pykernels.quantize_int8: .*{message}"):
        quantize_int8(**{"x": A.float(), **arguments})


@pytest.mark.parametrize(
    ("error", "message", "arguments"),
    [
        (TypeError, "x: expected a floating dtype, got torch.int8", {"x": A}),
        (ValueError, r"x: expected a matrix, got shape \(6,\)", {"x": torch.ones(6)}),
        (TypeError, "weight: expected torch.int8, got torch.float32", {"weight": torch.ones(3, 6)}),
        (ValueError, r"weight: expected shape \(N, 6\), got \(6, 3\)", {"weight": B}),
        (TypeError, "weight_scale: expected a tensor, got NoneType", {"weight_scale": None}),
        (
            RuntimeError,
            "bias: expected a tensor that requires no gradient",
            {"bias": torch.ones(3, requires_grad=True)},
        ),
    ],
)
def test_linear_refuses(error, message, arguments):
    with pytest.raises(error, match=f"pykernels.int8_linear: {message}"):
        int8_linear(**{"x": A.float(), "weight": B.t(), "weight_scale": ONE, **arguments})


def raw(a=A, b=B, a_scale=None, b_scale=None, zero=None, bias=None, code=0, out=torch.int32):
    return OPS.int8_matmul(a, b, a_scale, b_scale, zero, bias, code, out)


def raw_packed(change, n=3):
    packed = OPS.int8_pack(B)
    return OPS.int8_matmul_packed(A, change(packed), n, None, None, None, None, 0, torch.int32)


def with_byte(i: int):
    def change(packed):
        packed[i] += 1
        return packed

    return change


@native
@pytest.mark.parametrize(
    ("message", "call"),
    [
        ("a: expected torch.int8, got torch.float32", lambda: raw(a=A.float())),
        ("b: expected a matrix", lambda: raw(b=B[0])),
        ("b: expected 6 rows", lambda: raw(b=B[:4])),
        ("a_scale: expected torch.float32, got torch.float64", lambda: raw(a_scale=ONE.double(), out=torch.float32)),
        ("b_scale: expected one element, or shape", lambda: raw(b_scale=torch.ones(2), out=torch.float32)),
        ("a_zero_point: expected torch.int32", lambda: raw(zero=ONE)),
        ("bias: expected shape", lambda: raw(bias=torch.ones(2), out=torch.float32)),
        ("activation: expected a code in", lambda: raw(code=9, out=torch.float32)),
        ("out_dtype: the CPU kernels take", lambda: raw(out=torch.float64)),
        ("out_dtype: int32 is the plain sum", lambda: raw(code=1)),
        ("k: expected at most 131071", lambda: raw(a=A[:, :1].expand(4, 131072), b=B[:1].expand(131072, 3))),
        ("packed: too short", lambda: raw_packed(lambda p: p[:10])),
        ("packed: too short", lambda: raw_packed(lambda p: p[:0])),
        ("packed: no weight of int8_pack", lambda: raw_packed(with_byte(0))),
        ("packed: made by another version", lambda: raw_packed(with_byte(8))),
        ("packed: made for another instruction set", lambda: raw_packed(with_byte(12))),
        ("packed: its number of rows", lambda: raw_packed(with_byte(16))),
        ("packed: its number of columns", lambda: raw_packed(lambda p: p, n=4)),
        ("packed: cut short or extended", lambda: raw_packed(lambda p: p[:-1])),
        ("packed: cut short or extended", lambda: raw_packed(lambda p: torch.cat((p, p)))),
        ("packed: expected torch.uint8", lambda: raw_packed(lambda p: p.view(torch.int8))),
        ("packed: expected the contiguous 1-d tensor", lambda: raw_packed(lambda p: p[None])),
        ("n: expected at least 0", lambda: raw_packed(lambda p: p, n=-1)),
        ("b: expected at most 131071 rows", lambda: OPS.int8_pack(B[:1].expand(131072, 3))),
        ("x: expected torch.float32 or torch.bfloat16", lambda: OPS.quantize_int8(A.double(), 0, True)),
        ("axis: expected less than 2", lambda: OPS.quantize_int8(A.float(), 2, True)),
        ("x: expected torch.float32 or torch.bfloat16", lambda: OPS.int8_linear(A, B, ONE, None, 0)),
    ],
)
def test_the_operators_check_for_themselves(message, call):
    with pytest.raises(RuntimeError, match=message):
        call()


@native
def test_a_weight_packed_for_another_instruction_set_is_refused():
    isas = host_isas()
    if len(isas) < 2:
        pytest.skip("one instruction set only")
    with forced_isa(isas[0]):
        packed = OPS.int8_pack(B)
    with forced_isa(isas[1]), pytest.raises(RuntimeError, match="another instruction set"):
        OPS.int8_matmul_packed(A, packed, 3, None, None, None, None, 0, torch.int32)


@native
def test_backward_through_quantisation_says_what_is_wrong():
    _q, scale, _ = OPS.quantize_int8(torch.ones(3, 4, requires_grad=True), 0, True)
    with pytest.raises(RuntimeError, match="quantisation has no gradient"):
        scale.sum().backward()
