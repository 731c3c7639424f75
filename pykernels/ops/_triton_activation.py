"""The activations of `pykernels.ops._activation` for Triton's kernels, by name, in float32. NaN stays NaN."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def tanh(x):
    # 1 - 2 / (exp(2 |x|) + 1) has no overflow that matters; near 0 it cancels, and the series does not.
    z = tl.abs(x)
    far = 1.0 - 2.0 / (tl.exp(2.0 * z) + 1.0)
    s = x * x
    near = z * (1.0 + s * (-0.33333333 + s * (0.13333333 + s * (-0.053968254 + s * 0.021869489))))
    y = tl.where(z < 0.25, near, far)
    return tl.where(x < 0.0, -y, tl.where(x != x, x, y))


@triton.jit
def sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def upto6(x):
    return tl.where(x < 0.0, 0.0, tl.where(x > 6.0, 6.0, x))


@triton.jit
def mish_gate(x):
    # tanh(log(1 + e^x)); beyond 20 it is 1.
    e = tl.exp(tl.where(x > 20.0, 20.0, x))
    n = e * (e + 2.0)
    return n / (n + 2.0)


@triton.jit
def log1p_exp(x):
    # log(1 + u) with u = e^-|x|, which is 2 artanh(z) with z = u / (2 + u), at most 1/3
    u = tl.exp(-tl.abs(x))
    z = u / (u + 2.0)
    s = z * z
    far = 0.11111111 + s * (0.090909091 + s * 0.076923077)
    return 2.0 * z * (1.0 + s * (0.33333333 + s * (0.2 + s * (0.14285714 + s * far))))


@triton.jit
def gelu_argument(x):
    # z with (1 + tanh(z / 2)) / 2 = sigmoid(z)
    return 1.5957691 * x * (1.0 + 0.044715 * x * x)


@triton.jit
def activate(x, ACTIVATION: tl.constexpr, negative_slope):
    if ACTIVATION == "relu":
        x = tl.where(x < 0.0, 0.0, x)
    elif ACTIVATION == "leaky_relu":
        x = tl.where(x > 0.0, x, x * negative_slope)
    elif ACTIVATION == "elu":
        # exp(x) - 1 cancels near 0, and its series does not.
        series = x * (1.0 + x * (0.5 + x * (0.16666667 + x * (0.041666667 + x * (0.0083333333 + x * 0.0013888889)))))
        x = tl.where(x > 0.0, x, tl.where(x > -0.3, series, tl.exp(x) - 1.0))
    elif ACTIVATION == "sigmoid":
        x = sigmoid(x)
    elif ACTIVATION == "tanh":
        x = tanh(x)
    elif ACTIVATION == "silu":
        x = x * sigmoid(x)
    elif ACTIVATION == "gelu":
        x = 0.5 * x * (1.0 + tl.erf(x * 0.70710678))
    elif ACTIVATION == "hardswish":
        x = x * upto6(x + 3.0) * 0.16666667
    elif ACTIVATION == "relu6":
        x = upto6(x)
    elif ACTIVATION == "hardsigmoid":
        x = upto6(x + 3.0) * 0.16666667
    elif ACTIVATION == "mish":
        x = x * mish_gate(x)
    elif ACTIVATION == "gelu_tanh":
        x = x * sigmoid(gelu_argument(x))
    elif ACTIVATION == "softplus":
        x = tl.where(x < 0.0, 0.0, x) + log1p_exp(x)
    else:
        tl.static_assert(ACTIVATION == "none", "unknown activation")
    return x


@triton.jit
def gradient(gy, x, ACTIVATION: tl.constexpr, negative_slope):
    """gy act'(x). At a kink torch's choice: hardswish's slope is 0 from the left."""
    if ACTIVATION == "elu":
        gy *= tl.where(x > 0.0, 1.0, tl.exp(x))
    elif ACTIVATION == "sigmoid":
        p = sigmoid(x)
        gy *= p * (1.0 - p)
    elif ACTIVATION == "tanh":
        p = tanh(x)
        gy *= 1.0 - p * p
    elif ACTIVATION == "silu":
        p = sigmoid(x)
        gy *= p * (1.0 + x * (1.0 - p))
    elif ACTIVATION == "gelu":  # the normal distribution and x times its density
        gy *= 0.5 + 0.5 * tl.erf(x * 0.70710678) + x * 0.39894228 * tl.exp(-0.5 * x * x)
    elif ACTIVATION == "hardswish":
        gy *= tl.where(x < -3.0, 0.0, tl.where(x <= 3.0, x * 0.33333333 + 0.5, 1.0))
    elif ACTIVATION == "relu6":
        gy = tl.where((x <= 0.0) | (x >= 6.0), 0.0, gy)
    elif ACTIVATION == "hardsigmoid":
        gy = tl.where((x <= -3.0) | (x >= 3.0), 0.0, gy * 0.16666667)
    elif ACTIVATION == "mish":
        gate = mish_gate(x)
        gy *= gate + x * sigmoid(x) * (1.0 - gate * gate)
    elif ACTIVATION == "gelu_tanh":
        p = sigmoid(gelu_argument(x))
        gy *= p + x * p * (1.0 - p) * (1.5957691 + 0.21406431 * x * x)
    elif ACTIVATION == "softplus":
        gy *= sigmoid(x)
    else:
        gy = signed_gradient(gy, (x <= 0.0) == 0, ACTIVATION, negative_slope)
    return gy


@triton.jit
def signed_gradient(gy, positive, ACTIVATION: tl.constexpr, negative_slope):
    """gy act'(x) of the activations whose gradient x's sign tells (NaN's is positive)."""
    if ACTIVATION == "relu":  # not gy * 0: gy may be infinite
        gy = tl.where(positive, gy, 0.0)
    elif ACTIVATION == "leaky_relu":
        gy = tl.where(positive, gy, gy * negative_slope)
    else:
        tl.static_assert(ACTIVATION == "none", "unknown activation, or one that its sign does not tell")
    return gy
