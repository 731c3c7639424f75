"""Training's batch norm in Triton: statistics, act((x - mean) weight / sqrt(var + eps) + bias + residual), gradients.

Both layouts are one walk. A program has BLOCK_C channels for itself and goes over their values in steps of BLOCK_W:

    channels_last:  (N * H * W, C)   a step is BLOCK_W pixels, whose channels are adjacent
    contiguous:     (N, C, H * W)    a step is BLOCK_W adjacent pixels of an image; images follow one another

Tiles are (BLOCK_W, BLOCK_C) in both, with the parameters of the channels in registers, and sums are kept for each
element of the tile apart until the program's end: then a step costs a few operations an element and no exchange between
threads, and memory is the limit. Programs leave partial sums, which a small second kernel joins in a fixed order. Where
one program has all of a channel, it finishes by itself: statistics and the whole backward pass are one launch each.

Statistics are Welford's of differences to the first values' mean, joined by Chan's formula: no cancellation whatever
the mean, and no harm by an outlier. All elements of a tile have the same count, so that the reciprocal is a scalar's.
"""

from __future__ import annotations

import math

import torch
import triton
from torch._prims_common import suggest_memory_format

from pykernels.ops._activation import ACTIVATIONS
from pykernels.ops._triton import device_of, hinted, launch, triton_op
from pykernels.ops.batch_norm_act.autograd import backward_by, has_mask_of, setup_context
from pykernels.ops.batch_norm_act.triton.apply import (
    FROM_MASK,
    FROM_Z,
    ONE,
    backward_kernel,
    join_sums_kernel,
    normalise_kernel,
)
from pykernels.ops.batch_norm_act.triton.config import config
from pykernels.ops.batch_norm_act.triton.moments import join_moments_kernel, moments_kernel


class _Call:
    """One x, the walk over it, and the other tensors made to match."""

    def __init__(self, x: torch.Tensor, needs_rows: bool) -> None:
        """``needs_rows``: the mask's rows are those of the memory format, so the walk has to be, too."""
        self.format = suggest_memory_format(x)
        self.x = self.like_x(x)
        n, c, h, w = x.shape
        # Images of one pixel are a matrix either way, whose channels are adjacent.
        self.last = self.format == torch.channels_last or (h * w == 1 and not needs_rows)
        self.images, self.channels = (1 if self.last else n), c
        self.length = n * h * w if self.last else h * w
        across, inner = (n * h * w, c) if self.last else (c, h * w)
        self.align = math.gcd(inner, 16)
        self.walk = (self.images, across, inner // self.align)
        self.config = config(hinted(self.images), hinted(self.length), c, self.last, device_of(x))
        self.columns = triton.cdiv(c, self.config.block_c)

    def like_x(self, t: torch.Tensor) -> torch.Tensor:
        return t.contiguous(memory_format=self.format)

    def empty_like_x(self) -> torch.Tensor:
        return torch.empty_like(self.x, memory_format=self.format)

    def vectors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Two of float32, zeros where there is nothing to launch."""
        make = torch.empty if self.x.numel() else torch.zeros
        first, second = (make(self.channels, dtype=torch.float32, device=self.x.device) for _ in range(2))
        return first, second

    def parts(self, count: int) -> torch.Tensor:
        slabs = self.config.slabs
        shape = (count, slabs, self.channels) if slabs > 1 else (0,)
        return torch.empty(shape, dtype=torch.float32, device=self.x.device)

    def join_block(self) -> int:
        """Channels of a program that joins the slabs."""
        return max(8, min(64, 4096 // self.config.slabs))

    @property
    def constants(self) -> dict[str, int | bool]:
        c = self.config
        return {
            "LAST": self.last, "ALIGN": self.align, "BLOCK_W": c.block_w, "BLOCK_C": c.block_c, "num_warps": c.warps,
        }  # fmt: skip


def _or(t: torch.Tensor | None, other: torch.Tensor) -> torch.Tensor:
    """An absent operand is any tensor: the kernel never reads it."""
    return other if t is None else t


def _vector(t: torch.Tensor | None) -> torch.Tensor | None:
    return None if t is None else t.contiguous()


@triton_op("pykernels::batch_norm_statistics_triton", mutates_args=("running_mean", "running_var"))
def batch_norm_statistics(
    x: torch.Tensor, running_mean: torch.Tensor | None, running_var: torch.Tensor | None, momentum: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """``torch.ops.pykernels.batch_norm_statistics`` in Triton."""
    call = _Call(x, False)
    mean, var = call.vectors()
    if x.numel() == 0:
        return mean, var
    slabs, parts = call.config.slabs, call.parts(3)
    outputs = (mean, var, _or(running_mean, mean), _or(running_var, var), momentum)
    has = {"HAS_MEAN": running_mean is not None, "HAS_VAR": running_var is not None}
    launch(
        moments_kernel, (call.columns * slabs,), call.x, parts, *outputs, *call.walk, SLABS=slabs, **has,
        **call.constants,
    )  # fmt: skip
    if slabs > 1:
        block = call.join_block()
        launch(
            join_moments_kernel, (triton.cdiv(call.channels, block),), parts, *outputs, call.channels, BLOCK_C=block,
            SLABS=slabs, **has,
        )  # fmt: skip
    return mean, var


def _mask_bytes(x: torch.Tensor, last: bool) -> int:
    n, c, h, w = x.shape
    rows, inner = (n * h * w, c) if last else (n * c, h * w)
    return rows * ((inner + 7) // 8)


@triton_op("pykernels::batch_norm_act_triton")
def batch_norm_act(
    x: torch.Tensor, mean: torch.Tensor, var: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None,
    residual: torch.Tensor | None, training: bool, eps: float, activation: int, negative_slope: float,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """``torch.ops.pykernels.batch_norm_act`` in Triton; ``training`` is the gradient's affair."""
    has_mask = has_mask_of(ACTIVATIONS[activation], residual)
    call = _Call(x, has_mask)
    y = call.empty_like_x()
    mask = x.new_empty(_mask_bytes(x, call.last) if has_mask else 0, dtype=torch.uint8)
    if x.numel() == 0:
        return y, mask
    launch(
        normalise_kernel, (call.columns * call.config.spread,), call.x, mean.contiguous(), var.contiguous(),
        _or(_vector(weight), mean), _or(_vector(bias), mean), call.x if residual is None else call.like_x(residual), y,
        mask if has_mask else y, eps, negative_slope, *call.walk, call.config.spread, ACTIVATION=activation,
        HAS_WEIGHT=weight is not None, HAS_BIAS=bias is not None, HAS_RESIDUAL=residual is not None, HAS_MASK=has_mask,
        **call.constants,
    )  # fmt: skip
    return y, mask


@triton_op("pykernels::batch_norm_act_backward_triton")
def batch_norm_act_backward(
    dy: torch.Tensor, x: torch.Tensor, mean: torch.Tensor, var: torch.Tensor, weight: torch.Tensor | None,
    bias: torch.Tensor | None, residual: torch.Tensor | None, mask: torch.Tensor, training: bool, eps: float,
    activation: int, negative_slope: float, need_residual: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    """``torch.ops.pykernels.batch_norm_act_backward`` in Triton."""
    has_mask = mask.numel() > 0
    call = _Call(x, has_mask)
    dweight, dbias = call.vectors()
    dx, dresidual = call.empty_like_x(), call.empty_like_x() if need_residual else x.new_empty(0)
    if x.numel() == 0:
        return dx, dresidual, dweight, dbias
    slope = ONE if activation == 0 else FROM_MASK if has_mask else FROM_Z
    again = slope == FROM_Z and residual is not None
    slabs, parts = call.config.slabs, call.parts(2)
    kept = call.x if residual is None else call.like_x(residual)
    vectors = (mean.contiguous(), var.contiguous(), _or(_vector(weight), mean), _or(_vector(bias), mean))
    has = {"HAS_WEIGHT": weight is not None, "HAS_BIAS": bias is not None, "TRAINING": training, **call.constants}

    def run(g: torch.Tensor, spread: int, slope: int, residual: bool, **passes: bool) -> None:
        launch(
            backward_kernel, (call.columns * spread,), g, call.x, *vectors, kept, _or(mask if has_mask else None, kept),
            dx, _or(dresidual if need_residual else None, dx), dweight, dbias, parts, eps, negative_slope,
            *call.walk, spread, ACTIVATION=activation, SLOPE=slope, HAS_RESIDUAL=residual, **passes, **has,
        )  # fmt: skip

    g = call.like_x(dy)
    if slabs == 1:
        run(g, 1, slope, again, SUMS=True, GRADIENTS=True, WRITE_DZ=need_residual)
        return dx, dresidual, dweight, dbias
    # Where the second pass would have to read the residual again, the first one writes dz, and the second reads that.
    hands_on = again and need_residual
    run(g, slabs, slope, again, SUMS=True, GRADIENTS=False, WRITE_DZ=hands_on)
    block = call.join_block()
    launch(
        join_sums_kernel, (triton.cdiv(call.channels, block),), parts, var.contiguous(), dweight, dbias, eps,
        call.channels, BLOCK_C=block, SLABS=slabs,
    )  # fmt: skip
    if hands_on:
        g, slope, again = dresidual, ONE, False
    run(g, call.config.spread, slope, again, SUMS=False, GRADIENTS=True, WRITE_DZ=need_residual and not hands_on)
    return dx, dresidual, dweight, dbias


batch_norm_act.register_autograd(
    backward_by(lambda: torch.ops.pykernels.batch_norm_act_backward_triton), setup_context=setup_context
)
