"""The kernels that go over x with given statistics: normalising, and the gradients."""

from __future__ import annotations

import triton
import triton.language as tl

from pykernels.ops._triton_activation import activate, gradient, signed_gradient
from pykernels.ops.batch_norm_act.triton.tile import (
    affine,
    first_of,
    lanes_of,
    load_bits,
    mask_first,
    parameters,
    sizes,
    store_bits,
)

# How dz = grad_y act'(z) comes about: it is grad_y; by the sign in the mask; by z, computed again.
ONE, FROM_MASK, FROM_Z = 0, 1, 2


@triton.jit
def normalise_kernel(
    x, mean, var, weight, bias, residual, y, mask, eps, negative_slope, images, across, inner_units, spread,
    LAST: tl.constexpr, ALIGN: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_C: tl.constexpr, ACTIVATION: tl.constexpr,
    HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr, HAS_MASK: tl.constexpr,
):  # fmt: skip
    """y, and behind a residual the signs: x and residual are read once, y and one bit an element written."""
    length, channels = sizes(across, inner_units, LAST, ALIGN)
    columns, steps = tl.cdiv(channels, BLOCK_C), tl.cdiv(length, BLOCK_W)
    column, first = tl.program_id(0) % columns, tl.program_id(0) // columns
    w, c = tl.arange(0, BLOCK_W), column * BLOCK_C + tl.arange(0, BLOCK_C)
    lanes = lanes_of(length, channels, LAST, BLOCK_W, BLOCK_C)
    m, scale, shift, _ = parameters(mean, var, weight, bias, c, c < channels, eps, HAS_WEIGHT, HAS_BIAS)
    for t in range(first, images * steps, spread):
        image, start = t // steps, t % steps * BLOCK_W
        at = first_of(image, start, column, length, channels, LAST, BLOCK_C)
        inside = (start + w < length)[:, None] & (c < channels)[None, :]
        centred = tl.load(x + at + lanes, mask=inside, other=0.0).to(tl.float32) - m[None, :]
        z = affine(centred, scale, shift)
        if HAS_RESIDUAL:
            z += tl.load(residual + at + lanes, mask=inside, other=0.0).to(tl.float32)
        if HAS_MASK:
            signs = mask + mask_first(image, start, column, length, channels, LAST, BLOCK_C)
            positive = inside & ((z <= 0.0) == 0)  # NaN counts as positive
            store_bits(signs, positive, start, column, length, channels, LAST, BLOCK_W, BLOCK_C)
        z = activate(z, ACTIVATION, negative_slope)
        tl.store(y + at + lanes, z.to(y.dtype.element_ty), mask=inside)


@triton.jit
def _dz(
    t, grad_y, x, residual, mask, m, scale, shift, column, length, channels, negative_slope, LAST: tl.constexpr,
    BLOCK_W: tl.constexpr, BLOCK_C: tl.constexpr, ACTIVATION: tl.constexpr, SLOPE: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
):  # fmt: skip
    """Step t's (offset of its first element, which elements exist, x - mean, grad_y act'(z)); 0 where none exists."""
    steps = tl.cdiv(length, BLOCK_W)
    image, start = t // steps, t % steps * BLOCK_W
    first = first_of(image, start, column, length, channels, LAST, BLOCK_C)
    lanes = lanes_of(length, channels, LAST, BLOCK_W, BLOCK_C)
    w, c = start + tl.arange(0, BLOCK_W), column * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = (w < length)[:, None] & (c < channels)[None, :]
    g = tl.load(grad_y + first + lanes, mask=inside, other=0.0).to(tl.float32)
    centred = tl.load(x + first + lanes, mask=inside, other=0.0).to(tl.float32) - m[None, :]
    if SLOPE == 1:
        bits = mask + mask_first(image, start, column, length, channels, LAST, BLOCK_C)
        positive = load_bits(bits, start, column, length, channels, LAST, BLOCK_W, BLOCK_C)
        g = signed_gradient(g, positive, ACTIVATION, negative_slope)
    elif SLOPE == 2:
        z = affine(centred, scale, shift)
        if HAS_RESIDUAL:
            z += tl.load(residual + first + lanes, mask=inside, other=0.0).to(tl.float32)
        g = gradient(g, z, ACTIVATION, negative_slope)
    return first, inside, centred, g


@triton.jit
def backward_kernel(
    grad_y, x, mean, var, weight, bias, residual, mask, grad_x, grad_residual, grad_weight, grad_bias, parts, eps,
    negative_slope, images, across, inner_units, spread, LAST: tl.constexpr, ALIGN: tl.constexpr, BLOCK_W: tl.constexpr,
    BLOCK_C: tl.constexpr, ACTIVATION: tl.constexpr, SLOPE: tl.constexpr, HAS_WEIGHT: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr, TRAINING: tl.constexpr, SUMS: tl.constexpr,
    GRADIENTS: tl.constexpr, WRITE_DZ: tl.constexpr,
):  # fmt: skip
    """The pass for the sums, the pass for the gradients, or, where spread is 1, both.

    SUMS: sums of dz and dz * (x - mean) into parts (2, spread, C), or with GRADIENTS to grad_bias and grad_weight.
    GRADIENTS: grad_x = scale * (dz - grad_bias / m - (x - mean) * grad_weight / (m * sqrt(var + eps))).
    WRITE_DZ: grad_residual = dz, by the last pass that reads the residual.
    """
    length, channels = sizes(across, inner_units, LAST, ALIGN)
    columns, tiles = tl.cdiv(channels, BLOCK_C), images * tl.cdiv(length, BLOCK_W)
    column, slab = tl.program_id(0) % columns, tl.program_id(0) // columns
    c = column * BLOCK_C + tl.arange(0, BLOCK_C)
    exists = c < channels
    lanes = lanes_of(length, channels, LAST, BLOCK_W, BLOCK_C)
    m, scale, shift, inverse = parameters(mean, var, weight, bias, c, exists, eps, HAS_WEIGHT, HAS_BIAS)
    if SUMS:
        sum_dz, sum_dzx = tl.zeros((BLOCK_W, BLOCK_C), tl.float32), tl.zeros((BLOCK_W, BLOCK_C), tl.float32)
        for t in range(slab, tiles, spread):
            first, inside, centred, dz = _dz(
                t, grad_y, x, residual, mask, m, scale, shift, column, length, channels, negative_slope, LAST, BLOCK_W,
                BLOCK_C, ACTIVATION, SLOPE, HAS_RESIDUAL,
            )  # fmt: skip
            if WRITE_DZ and not GRADIENTS:
                tl.store(grad_residual + first + lanes, dz.to(grad_residual.dtype.element_ty), mask=inside)
            sum_dz += dz
            sum_dzx += dz * centred
        db, dwx = tl.sum(sum_dz, axis=0), tl.sum(sum_dzx, axis=0)
        if GRADIENTS:
            dw = dwx * inverse
            tl.store(grad_bias + c, db, mask=exists)
            tl.store(grad_weight + c, dw, mask=exists)
        else:
            tl.store(parts + slab * channels + c, db, mask=exists)
            tl.store(parts + (spread + slab) * channels + c, dwx, mask=exists)
    elif TRAINING:
        db = tl.load(grad_bias + c, mask=exists, other=0.0)
        dw = tl.load(grad_weight + c, mask=exists, other=0.0)
    if GRADIENTS:
        for t in range(slab, tiles, spread):
            first, inside, centred, dz = _dz(
                t, grad_y, x, residual, mask, m, scale, shift, column, length, channels, negative_slope, LAST, BLOCK_W,
                BLOCK_C, ACTIVATION, SLOPE, HAS_RESIDUAL,
            )  # fmt: skip
            if WRITE_DZ:
                tl.store(grad_residual + first + lanes, dz.to(grad_residual.dtype.element_ty), mask=inside)
            if TRAINING:
                over_m = 1.0 / (tl.cast(images, tl.float32) * length)
                dz -= (db * over_m)[None, :] + centred * (dw * inverse * over_m)[None, :]
            tl.store(grad_x + first + lanes, (dz * scale[None, :]).to(grad_x.dtype.element_ty), mask=inside)


@triton.jit
def join_sums_kernel(parts, var, grad_weight, grad_bias, eps, channels, BLOCK_C: tl.constexpr, SLABS: tl.constexpr):
    """grad_bias and grad_weight of the slabs' sums (2, SLABS, C)."""
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = c < channels
    at = parts + tl.arange(0, SLABS)[:, None] * channels + c[None, :]
    db = tl.sum(tl.load(at, mask=inside[None, :], other=0.0), axis=0)
    dwx = tl.sum(tl.load(at + SLABS * channels, mask=inside[None, :], other=0.0), axis=0)
    tl.store(grad_bias + c, db, mask=inside)
    tl.store(grad_weight + c, tl.div_rn(dwx, tl.sqrt_rn(tl.load(var + c, mask=inside, other=1.0) + eps)), mask=inside)
