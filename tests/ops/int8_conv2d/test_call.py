"""int8_conv2d: the reference against sums in int64, the native op on the CPU and on CUDA, bad arguments."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.library import opcheck

import pykernels as pk
from pykernels.ops import int8_conv2d
from pykernels.ops.int8_conv2d.spec import INT8_CONV2D_SPEC, int8_conv2d_reference
from tests.harness import (
    DEVICE,
    FORMATS,
    assert_threads_change_nothing,
    forced_isa,
    host_isas,
    inputs_of,
    native,
    needs_cuda,
    tensors_of,
)
from tests.ops.int8_conv2d.checks import each_check, integers

OPS = torch.ops.pykernels
GEOMETRY = ((1, 1), (1, 1, 1, 1), (1, 1), 1)


@each_check
def test_reference(check):
    check("reference")


@native
@each_check
@pytest.mark.parametrize("isa", host_isas())
def test_cpu(check, isa):
    with forced_isa(isa), torch.device("cpu"):
        check("cpu")


@needs_cuda
@each_check
def test_cuda(check):
    check("cuda")


@needs_cuda
@pytest.mark.parametrize("residual", [torch.int8, torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("out", [torch.int8, torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("groups", [1, 2, 8])
def test_cuda_is_the_reference_to_a_rounding(residual, out, groups):
    x, weight = integers(2, 8, 7, 6), integers(16, 8 // groups, 3, 3, seed=1)
    scale = torch.exp2(torch.arange(16.0) % 3 - 10).cuda()  # exact, and so is the rounding
    added = integers(2, 16, 7, 6, seed=2).to(residual)
    options = {"residual": added, "residual_scale": 0.5, "padding": 1, "groups": groups, "activation": "relu",
               "out_scale": 0.25, "out_dtype": out}  # fmt: skip
    y = int8_conv2d(x, weight, scale, scale, **options, backend="cuda")
    assert torch.equal(y, int8_conv2d(x, weight, scale, scale, **options, backend="reference"))


@native
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_opcheck_of_the_native_op(layout):
    # On the CPU alone: its other end, on CUDA, takes what this takes.
    x = integers(2, 4, 6, 5).cpu().contiguous(memory_format=layout)
    weight, residual = integers(8, 4, 3, 3, seed=1).cpu(), torch.rand(2, 8, 6, 5)
    opcheck(OPS.int8_conv2d.default, (x, weight, torch.rand(8), None, residual, 0.5, *GEOMETRY, 1, 0.01, 2.0,
                                      torch.bfloat16, 3, 0, 0))  # fmt: skip


@native
def test_the_native_op_on_a_cpu_is_the_reference():
    x, weight, residual = integers(2, 4, 6, 5).cpu(), integers(8, 4, 3, 3, seed=1).cpu(), torch.rand(2, 8, 6, 3)
    scale, bias = torch.rand(8), torch.rand(8)
    y = OPS.int8_conv2d(
        x, weight, scale, bias, residual, 0.5, (1, 2), (0, 1, 2, 1), (1, 1), 1, 2, 0.2, 3.0, torch.bfloat16
    )
    padded = torch.nn.functional.pad(x, (1, 1, 0, 2))
    options = {"residual": residual, "residual_scale": 0.5, "stride": (1, 2), "activation": "leaky_relu"}
    expected = int8_conv2d_reference(
        padded, weight, scale, bias, **options, negative_slope=0.2, out_scale=3.0, out_dtype=torch.bfloat16
    )
    assert torch.equal(y, expected)


CALLS = {
    "sums": {"out_dtype": torch.int32, "x_zero_point": -128},
    "float": {"x_zero_point": 100},
    "int8": {"out_dtype": torch.int8, "x_zero_point": -5, "out_zero_point": 40, "activation": "relu6",
             "out_scale": 9.3},
    "added": {"out_dtype": torch.int8, "x_zero_point": 127, "residual_zero_point": -90, "residual_scale": 0.3,
              "out_zero_point": -128, "activation": "relu"},
}  # fmt: skip


@native
@pytest.mark.parametrize("layout", FORMATS, ids=str)
@pytest.mark.parametrize("groups", [1, 4, 40])
@pytest.mark.parametrize("name", CALLS)
def test_zero_points_have_the_references_bits_on_every_isa(name, groups, layout):
    call = {"stride": 2, "padding": 2, "groups": groups, **CALLS[name]}
    x, weight = integers(2, 40, 9, 8).cpu(), integers(40, 40 // groups, 3, 3, seed=1).cpu()
    x = x.contiguous(memory_format=layout)
    vectors = () if name == "sums" else (torch.rand(40) / 100, torch.randn(40))
    if name == "added":
        call["residual"] = integers(2, 40, 6, 5, seed=2).cpu().contiguous(memory_format=layout)
    expected = int8_conv2d_reference(x, weight, *vectors, **call)
    padded = torch.nn.functional.pad(x, (2, 2, 2, 2), value=call["x_zero_point"])
    assert torch.equal(int8_conv2d_reference(padded, weight, *vectors, **{**call, "padding": 0}), expected)
    for isa in host_isas():
        with forced_isa(isa):
            assert_threads_change_nothing(lambda: int8_conv2d(x, weight, *vectors, **call, backend="cpu"), (1, 3))
            y = int8_conv2d(x, weight, *vectors, **call, backend="cpu")
        assert torch.equal(y, expected), isa
        assert y.is_contiguous(memory_format=layout)


@native
def test_kernels_without_zero_points_say_so():
    x, weight = integers(1, 4, 5, 5), integers(3, 4, 3, 3, seed=1)
    with pytest.raises((RuntimeError, ValueError), match=r"int8_conv2d: .*zero points|cannot run"):
        int8_conv2d(x, weight, x_zero_point=1, backend="triton")


@native
@pytest.mark.parametrize("groups", [1, 4, 8])
def test_bound_is_the_whole_op(groups):
    x, weight = integers(2, 8, 6, 5).cpu(), integers(8, 8 // groups, 3, 3, seed=1).cpu()
    scale, shift, table = torch.rand(8) / 100, torch.randn(8), integers(256, seed=3).cpu()
    call = (0.5, (1, 2), (1, 1, 1, 1), (1, 1), groups, 1, 0.01, 0.25, torch.int8, 3, -4, 5)
    residual = integers(2, 8, 6, 3, seed=2).cpu()
    y = OPS.int8_conv2d(x, weight, scale, shift, residual, *call)
    bound = OPS.int8_conv_bind(weight, scale, shift, None, *call)
    assert torch.equal(OPS.int8_conv2d_bound(x, bound, residual, torch.int8), y)
    opcheck(OPS.int8_conv_bind.default, (weight, scale, shift, table, *call))
    opcheck(OPS.int8_conv2d_bound.default, (x, bound, residual, torch.int8),
            test_utils=("test_schema", "test_autograd_registration"))  # fmt: skip
    with_table = OPS.int8_conv_bind(weight, scale, shift, table, *call)
    expected = table[y.long() + 128]
    for layout in FORMATS:
        got = OPS.int8_conv2d_bound(x.contiguous(memory_format=layout), with_table, residual, torch.int8)
        assert torch.equal(got, expected)


@native
def test_what_is_wrong_with_a_bound_call_is_said():
    x, weight = integers(1, 4, 5, 5).cpu(), integers(8, 4, 3, 3, seed=1).cpu()
    call = (1.0, *GEOMETRY, 0, 0.01, 1.0)
    bound = OPS.int8_conv_bind(weight, None, None, None, *call, torch.int8)
    for arguments, words in [
        ((x[:, :3], bound, None, torch.int8), r"x: expected 4 channels, got shape \(1, 3, 5, 5\)"),
        ((x.float(), bound, None, torch.int8), "x: expected torch.int8, got torch.float32"),
        ((x, bound[:-1], None, torch.int8), "bound_conv: cut short"),
        ((x, bound[:9], None, torch.int8), "bound_conv: too short"),
        ((x, bound.clone().zero_(), None, torch.int8), "bound_conv: no packed weight"),
        ((x, bound.float(), None, torch.int8), "bound_conv: expected the contiguous 1-D torch.uint8"),
        ((x, bound, None, torch.float32), "out_dtype: expected the dtype that was bound"),
        ((x, bound, x, torch.int8), r"residual: expected shape \(1, 8, 5, 5\)"),
        ((x, bound, x.long(), torch.int8), "residual: the CPU kernels take"),
    ]:
        with pytest.raises(RuntimeError, match=words):
            OPS.int8_conv2d_bound(*arguments)
    with pytest.raises(RuntimeError, match=r"x_zero_point: expected a number in \[-128, 127\], got 128"):
        OPS.int8_conv_bind(weight, None, None, None, *call, torch.int8, 128, 0, 0)
    with pytest.raises(RuntimeError, match=r"table: expected shape \(256\)"):
        OPS.int8_conv_bind(weight, None, None, x.flatten(), *call, torch.int8)
    with pytest.raises(RuntimeError, match="out_dtype: expected int8, for a table or a zero point"):
        OPS.int8_conv_bind(weight, None, None, None, *call, torch.float32, 0, 0, 1)


@native
def test_the_native_op_has_a_shape_on_cuda_and_no_gradient():
    with FakeTensorMode(allow_non_fake_inputs=True):
        x, weight = (torch.empty(s, dtype=torch.int8, device="cuda") for s in ((2, 4, 6, 5), (8, 4, 3, 3)))
        y = OPS.int8_conv2d(x, weight, None, None, None, 1.0, *GEOMETRY, 0, 0.01, 1.0, torch.int32)
        assert (y.shape, y.dtype, y.device.type) == ((2, 8, 6, 5), torch.int32, "cuda")
    scale = torch.rand(8, requires_grad=True)
    x, weight = integers(1, 4, 6, 5).cpu(), integers(8, 4, 3, 3, seed=1).cpu()
    y = OPS.int8_conv2d(x, weight, scale, None, None, 1.0, *GEOMETRY, 0, 0.01, 1.0, torch.float32)
    with pytest.raises(RuntimeError, match=r"pykernels.int8_conv2d: quantisation has no gradient"):
        y.sum().backward()


@pytest.mark.parametrize("sample", [s for s in INT8_CONV2D_SPEC.samples if not s.bench], ids=lambda s: s.name)
def test_the_reference_in_float32_has_the_bits_of_float64s_integers(sample):
    args, kwargs = inputs_of(sample, torch.float32)
    if kwargs["out_dtype"] == torch.int8:
        wide = [t.double() if t is not None and t.is_floating_point() else t for t in args]
        assert torch.equal(int8_conv2d_reference(*args, **kwargs), int8_conv2d_reference(*wide, **kwargs))


def test_auto_runs_everywhere():
    x, weight = integers(1, 4, 5, 5), integers(3, 4, 3, 3, seed=1)
    assert int8_conv2d(x, weight).dtype == torch.float32
    assert pk.ops.int8_conv2d is int8_conv2d


def test_float64_stays_wide():
    x, weight = integers(1, 4, 5, 5), integers(3, 4, 3, 3, seed=1)
    scale = torch.full((3,), 1 / 3, dtype=torch.float64, device=DEVICE)
    y = int8_conv2d(x, weight, scale)
    assert torch.equal(y, (int8_conv2d(x, weight, out_dtype=torch.int32).double() / 3).float())


X, W = torch.zeros(1, 4, 5, 5, dtype=torch.int8), torch.zeros(6, 4, 3, 3, dtype=torch.int8)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"x": X.float()}, TypeError, "x: expected torch.int8, got torch.float32"),
        ({"weight": W.half()}, TypeError, "weight: expected torch.int8"),
        ({"x": X[0, 0]}, ValueError, r"x: expected \(N, C, H, W\) or \(C, H, W\)"),
        ({"weight": W[0]}, ValueError, r"weight: expected \(K, C/groups, R, S\)"),
        ({"x": X[:, :3]}, ValueError, "x: expected 4 channels"),
        ({"x": X[..., :0]}, ValueError, "x: expected H and W of at least 1"),
        ({"x": X[..., :2]}, ValueError, "x: expected a padded input no smaller than the dilated kernel"),
        ({"weight": W[:0]}, ValueError, "weight: expected K, R and S of at least 1"),
        ({"weight": W[:, :2], "groups": 2, "stride": 0}, ValueError, "stride: expected an int or two ints >= 1"),
        ({"weight": W[:5, :2], "groups": 2}, ValueError, "weight: expected K divisible by groups = 2, got K = 5"),
        ({"groups": 0}, ValueError, "groups: expected an int >= 1"),
        ({"padding": "full"}, ValueError, "padding: expected an int, two ints, 'same' or 'valid'"),
        ({"dilation": "a"}, TypeError, "dilation: expected an int or two ints"),
        ({"weight": torch.zeros(1, 131072, 1, 1, dtype=torch.int8), "x": X[:, :1].expand(1, 131072, 5, 5)}, ValueError,
         "weight: expected at most 131071 numbers a filter"),
        ({"scale": torch.ones(5)}, ValueError, r"scale: expected one element, \(6,\)"),
        ({"scale": torch.ones(6, dtype=torch.int32)}, TypeError, "scale: expected a floating dtype"),
        ({"bias": torch.ones(1)}, ValueError, r"bias: expected shape \(6,\)"),
        ({"residual": torch.ones(1, 6, 3, 3, dtype=torch.int32)}, TypeError, "residual: expected torch.int8 or a floa"),
        ({"residual": torch.ones(1, 6, 5, 5)}, ValueError, r"residual: expected the output's shape \(1, 6, 3, 3\)"),
        ({"out_dtype": torch.float64}, ValueError, "out_dtype: expected one of"),
        ({"out_dtype": torch.int32, "scale": torch.ones(6)}, ValueError, "out_dtype: expected .* plain sums"),
        ({"out_dtype": torch.int32, "activation": "relu"}, ValueError, "out_dtype: expected .* plain sums"),
        ({"x_zero_point": 128}, ValueError, r"x_zero_point: expected an int in \[-128, 127\], got 128"),
        ({"x_zero_point": -129}, ValueError, "x_zero_point: expected an int >= -128"),
        ({"x_zero_point": 0.5}, TypeError, "x_zero_point: expected an int"),
        ({"residual_zero_point": 3}, ValueError, "residual: expected a tensor, because residual_zero_point is given"),
        ({"residual_zero_point": 3, "residual": torch.ones(1, 6, 3, 3)}, TypeError, "residual: expected torch.int8"),
        ({"out_zero_point": 3}, ValueError, "out_dtype: expected torch.int8, because out_zero_point is given"),
        ({"weight": torch.zeros(1, 65794, 1, 1, dtype=torch.int8), "x": X[:, :1].expand(1, 65794, 5, 5),
          "x_zero_point": 1}, ValueError, "weight: expected at most 65793 numbers a filter with a zero point"),
        ({"scale": torch.ones(6, requires_grad=True)}, RuntimeError, "scale: expected a tensor that requires no grad"),
    ],
)  # fmt: skip
def test_bad_arguments_are_named(arguments, error, words):
    with pytest.raises(error, match=f"pykernels.int8_conv2d: {words}"):
        int8_conv2d(**{"x": X, "weight": W, **arguments})


def test_samples_of_every_kind_of_output():
    kinds = {inputs_of(s, torch.float32)[1]["out_dtype"] for s in INT8_CONV2D_SPEC.samples if not s.bench}
    assert kinds == {torch.int32, torch.int8, torch.float32}
    assert all(t.is_floating_point() or t.dtype == torch.int8 for s in INT8_CONV2D_SPEC.samples if not s.bench
               for t in tensors_of(inputs_of(s, torch.float16)))  # fmt: skip
