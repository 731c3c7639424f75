"""What conv_bn_act refuses beyond test_dialect.py: of the public function, of the native op, of a packed weight."""

from __future__ import annotations

import pytest
import torch

from pykernels import _native
from pykernels.ops import ACTIVATIONS, conv_bn_act
from tests.harness import forced_isa, host_isas, native

X, W, V = torch.zeros(2, 6, 8, 8), torch.zeros(4, 6, 3, 3), torch.ones(4)
BAD = {
    "x integer": ((X.int(), W.int()), {}, TypeError, r"x: expected a floating dtype, got torch.int32"),
    "x 2-d": ((X[0, 0], W), {}, ValueError, r"x: expected \(N, C, H, W\) or \(C, H, W\), got shape \(8, 8\)"),
    "x no height": ((X[:, :, :0], W), {"padding": 3}, ValueError, r"x: expected H and W of at least 1, got shape"),
    "weight 2-d": ((X, W[0, 0]), {}, ValueError, r"weight: expected .*, got shape \(3, 3\)"),
    "weight 3-d": ((X, W[0]), {}, ValueError, r"x: expected \(N, C, L\) or \(C, L\), because weight is"),
    "weight empty": ((X, W[:0]), {}, ValueError, r"weight: expected K, R and S of at least 1, got .*\(0, 6, 3, 3\)"),
    "weight no columns": ((X, W[..., :0]), {}, ValueError, r"weight: expected K, R and S of at least 1"),
    "channels": ((X[:, :5], W), {}, ValueError, r"x: expected 6 channels .* got 5 in shape \(2, 5, 8, 8\)"),
    "filters by groups": ((X, W[:, :2]), {"groups": 3}, ValueError, r"weight: expected K divisible by .* got K = 4"),
    "weight dtype": ((X, W.double()), {}, TypeError, r"weight: expected x's dtype torch.float32, got torch.float64"),
    "weight device": ((X, W.to("meta")), {}, ValueError, r"weight: expected x's device cpu, got meta"),
    "bias shape": ((X, W, V[:3]), {}, ValueError, r"bias: expected shape \(4,\), got \(3,\)"),
    "bias dtype": ((X, W, V.int()), {}, TypeError, r"bias: expected a floating dtype, got torch.int32"),
    "mean shape": ((X, W, None, V[None], V), {}, ValueError, r"running_mean: expected shape \(4,\), got \(1, 4\)"),
    "eps": ((X, W, None, V, V), {"eps": -1.0}, ValueError, r"eps: expected a number >= 0, got -1.0"),
    "residual shape": ((X, W), {"residual": X}, ValueError, r"residual: .* \(2, 4, 6, 6\), got \(2, 6, 8, 8\)"),
    "residual dtype": ((X, W), {"residual": X.double()}, TypeError, r"residual: expected x's dtype torch.float32, got"),
    "stride 0": ((X, W), {"stride": 0}, ValueError, r"stride: expected an int or two ints >= 1, got 0"),
    "stride 3": ((X, W), {"stride": (1, 2, 3)}, ValueError, r"stride: expected .* two ints >= 1, got \(1, 2, 3\)"),
    "stride float": ((X, W), {"stride": 1.5}, TypeError, r"stride: expected an int or two ints, got 1.5"),
    "padding negative": ((X, W), {"padding": (0, -1)}, ValueError, r"padding: expected an int or two ints >= 0"),
    "padding word": ((X, W), {"padding": "full"}, ValueError, r"padding: expected .* 'same' or 'valid', got 'full'"),
    "same with stride": ((X, W), {"padding": "same", "stride": 2}, ValueError, r"stride: expected 1, because padding"),
    "dilation 0": ((X, W), {"dilation": (1, 0)}, ValueError, r"dilation: expected .* >= 1, got \(1, 0\)"),
    "groups 0": ((X, W), {"groups": 0}, ValueError, r"groups: expected an int >= 1, got 0"),
    "kernel too large": ((X, W), {"dilation": 5}, ValueError, r"x: expected .* \(11 x 11\), got \(8 x 8\)"),
    "cuda": ((X, W), {"backend": "cuda"}, RuntimeError, r"backend='cuda' cannot run: its tensors are on 'cpu'"),
    "float64 on cpu": ((X.double(), W.double()), {"backend": "cpu"}, RuntimeError, r"cannot run: .* not torch.float64"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments(name):
    args, kwargs, error, message = BAD[name]
    if name == "float64 on cpu" and _native.error is not None:
        pytest.skip(_native.error)
    with pytest.raises(error, match=rf"pykernels\S*: {message}|{message}"):
        conv_bn_act(*args, **kwargs)


RAW = {"stride": [1, 1], "padding": [0] * 4, "dilation": [1, 1], "groups": 1, "activation": 1, "negative_slope": 0.0}
RAW_BAD = {
    "x 3-d": ({"x": X[0]}, "x: expected 4 dimensions"),
    "x double": ({"x": X.double()}, "expected torch.float"),
    "weight double": ({"weight": W.double()}, "weight: expected torch.float32"),
    "weight 3-d": ({"weight": W[0]}, "weight: expected 4"),
    "channels": ({"x": X[:, :5]}, "x: expected 6 channels"),
    "scale shape": ({"scale": V[:2]}, r"scale: expected shape \(4\)"),
    "shift dtype": ({"shift": V.double()}, "shift: expected torch.float32"),
    "residual shape": ({"residual": X}, r"residual: expected shape \(2, 4, 6, 6\)"),
    "residual dtype": ({"residual": torch.zeros(2, 4, 6, 6).bfloat16()}, "residual: expected torch.float32"),
    "stride length": ({"stride": [1]}, "stride: expected 2 values, got 1"),
    "stride zero": ({"stride": [1, 0]}, "stride: expected at least 1"),
    "padding length": ({"padding": [1, 1]}, "padding: expected 4 values, got 2"),
    "padding negative": ({"padding": [0, 0, 0, -1]}, "padding: expected at least 0"),
    "dilation zero": ({"dilation": [0, 1]}, "dilation: expected at least 1"),
    "kernel too large": ({"dilation": [9, 9]}, "larger than the padded input"),
    "huge padding": ({"padding": [2**62, 0, 0, 0]}, "above 2"),
    "groups zero": ({"groups": 0}, "groups: expected at least 1"),
    "groups": ({"weight": W[:3, :3], "groups": 2}, "groups: expected a divisor of weight's output channels"),
    "activation": ({"activation": len(ACTIVATIONS)}, r"activation: expected a code in \[0, \d+\), got \d+"),
}


@native
@pytest.mark.parametrize("name", RAW_BAD)
def test_bad_arguments_of_the_native_op_itself(name):
    change, message = RAW_BAD[name]
    arguments = {"x": X, "weight": W, "scale": None, "shift": None, "residual": None, **RAW, **change}
    with pytest.raises(RuntimeError, match=message):
        torch.ops.pykernels.conv_bn_act(**arguments)


@native
@pytest.mark.parametrize("harm", ["short", "empty", "magic", "shape", "groups", "dtype", "2-d", "another ISA"])
def test_a_malformed_packed_weight_is_refused(harm):
    packed = torch.ops.pykernels.conv_pack(W, 1, 0)
    shape, raw = list(W.shape), dict(RAW)
    if harm == "short":
        packed = packed[:-4]
    elif harm == "empty":
        packed = packed[:0]
    elif harm == "magic":
        packed[:8] = 0
    elif harm == "shape":
        shape[2] = 1
    elif harm == "groups":
        shape[1], raw["groups"] = 3, 2
    elif harm == "dtype":
        packed = packed.view(torch.int8)
    elif harm == "2-d":
        packed = packed[None]
    else:
        other = next(isa for isa in host_isas() if isa != _native.introspect().active_isa())
        with forced_isa(other):
            packed = torch.ops.pykernels.conv_pack(W, 1, 0)
    with pytest.raises(RuntimeError, match="packed: "):
        torch.ops.pykernels.conv_bn_act_packed(X, packed, shape, None, None, None, **raw)
