"""conv_transpose_bn_act: a transposed convolution as ordinary ones, one for each phase of the result.

With a stride of s, the pixels of a phase lie s apart. For a row o = s i + a of the result, o = s h - p + d r leads from
the row h of x and the tap r to it. So a phase a uses the taps r for which s divides a + p - d r, and convolves x with
these, turned around, at stride 1. Each phase writes its own pixels of the result. There is no product with a zero
between the pixels, and the kernels are those of `conv_bn_act`, on every backend.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._prims_common import suggest_memory_format

from pykernels.ops._activation import activation_code
from pykernels.ops._arguments import (
    check_floating,
    check_int,
    check_like,
    check_number,
    check_shape,
    check_tensor,
    fail,
    pair,
)
from pykernels.ops._autocast import autocast_dtype, cast
from pykernels.ops._dispatch import choose, kernels
from pykernels.ops.conv_bn_act import fold_batch_norm
from pykernels.ops.conv_bn_act.arguments import (
    BatchNorm,
    ConvCall,
    Geometry,
    check_batch_norm,
    for_height_1,
    tf32_allowed,
)
from pykernels.ops.conv_bn_act.op import CONV_BN_ACT, CONV_TRANSPOSE_BN_ACT
from pykernels.ops.conv_bn_act.reference import finish

OP = CONV_TRANSPOSE_BN_ACT.name


class Phase(NamedTuple):
    """Rows (or columns) ``first``, ``first`` + stride, ... of the result.

    ``taps`` in the order of x's rows, which lie ``dilation`` apart; ``before`` and ``after`` are the rows of zeros
    around x, or, below 0, of x that are not read. There are ``more`` rows than x has.
    """

    first: int
    taps: tuple[int, ...]
    dilation: int
    before: int
    after: int
    more: int

    def of_reversed(self, size: int) -> slice:
        """Its taps, as a slice of a dimension of ``size`` taps in reverse order."""
        first, last = size - 1 - self.taps[0], size - 1 - self.taps[-1]
        return slice(first, last + 1, (last - first) // max(len(self.taps) - 1, 1) or 1)

    def reads(self, size: int) -> int:
        """How many of x's ``size`` rows it reads; below 1, its rows consist of zeros only."""
        return size + min(self.before, 0) + min(self.after, 0) if self.taps else 0


def phases(size: int, stride: int, padding: int, output_padding: int, dilation: int) -> list[Phase]:
    """Those of one dimension, whatever x's size, for a filter of ``size`` taps."""
    found = []
    for a in range(stride):
        taps = tuple(r for r in reversed(range(size)) if (a + padding - dilation * r) % stride == 0)
        more = (dilation * (size - 1) + output_padding - 2 * padding - a + stride) // stride - 1
        step = dilation // gcd(stride, dilation)
        start = (a + padding - dilation * taps[0]) // stride if taps else 0
        found.append(Phase(a, taps, step, -start, more + start + (len(taps) - 1) * step, more))
    return found


def as_filters(weight: Tensor, groups: int) -> Tensor:
    """A transposed convolution's weight, (C, K / groups, R, S), as an ordinary one's, (K, C / groups, R, S)."""
    c, k, r, s = weight.shape
    return weight.reshape(groups, c // groups, k, r, s).transpose(1, 2).reshape(groups * k, c // groups, r, s)


class TransposedCall(NamedTuple):
    """A call but for its tensors. The pairs are (vertical, horizontal)."""

    stride: tuple[int, int]
    padding: tuple[int, int]
    output_padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    #: `activation_code`'s
    activation: int
    negative_slope: float

    def phases(self, size: Sequence[int]) -> tuple[list[Phase], list[Phase]]:
        """Those of the rows and those of the columns, for a filter of ``size`` (R, S)."""
        axes = zip(size, self.stride, self.padding, self.output_padding, self.dilation, strict=True)
        rows, columns = (phases(*axis) for axis in axes)
        return rows, columns

    def output_size(self, image: Sequence[int], size: Sequence[int]) -> tuple[int, int]:
        """(P, Q) for an image of (H, W) and a filter of ``size`` (R, S)."""
        p, q = (
            (n - 1) * s - 2 * pad + d * (taps - 1) + more + 1
            for n, taps, s, pad, more, d in zip(
                image, size, self.stride, self.padding, self.output_padding, self.dilation, strict=True
            )
        )
        return p, q


def conv_transpose_bn_act(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    bn_weight: Tensor | None = None,
    bn_bias: Tensor | None = None,
    *,
    eps: float = 1e-5,
    residual: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    output_padding: int | Sequence[int] = 0,
    groups: int = 1,
    dilation: int | Sequence[int] = 1,
    activation: str = "relu",
    negative_slope: float = 0.01,
    backend: str | None = None,
) -> Tensor:
    """Transposed convolution in 1 or 2 dimensions, inference-mode batch norm, residual add and activation.

    It computes the same as this, without the batch norm where ``running_mean`` and ``running_var`` are None::

        z = F.conv_transpose2d(x, weight, bias, stride, padding, output_padding, groups, dilation)
        z = F.batch_norm(z, running_mean, running_var, bn_weight, bn_bias, training=False, eps=eps)
        y = act(z + residual)

    A ``weight`` of three dimensions is for sequences, with one int each for the geometry, as for `F.conv_transpose1d`.

    Args:
        x: (N, C, H, W), or (C, H, W) unbatched, of any strides. Of sequences (N, C, L) or (C, L).
        weight: (C, K / groups, R, S), of ``x``'s dtype; for sequences (C, K / groups, S).
        bias: (K,).
        running_mean: (K,); the batch norm's mean, with ``running_var``.
        running_var: (K,); the batch norm's variance.
        bn_weight: (K,); the batch norm's scale, 1 if None.
        bn_bias: (K,); the batch norm's shift, 0 if None.
        eps: Added to the variance.
        residual: Added before the activation; of the output's shape and ``x``'s dtype.
        stride: One int or (vertical, horizontal).
        padding: Rows and columns that are cut off at each side of the result.
        output_padding: Rows and columns that are added at the bottom and at the right; less than stride or dilation.
        groups: Divides C and K.
        dilation: One int or (vertical, horizontal).
        activation: One of `pykernels.ops.ACTIVATIONS`.
        negative_slope: The slope of leaky_relu below 0.
        backend: "auto", "cpu", "cuda", "triton" or "reference"; None means that of the `pykernels.backend` block.

    Returns:
        (N, K, P, Q), or (K, P, Q) for unbatched input, in ``x``'s dtype and memory format; of sequences without P.

    Dtypes, precision, gradients and autocast are as in `conv_bn_act`, whose kernels run. The weight is packed at every
    call; `pykernels.nn.ConvTransposeBNAct2d` packs it once.

    Raises:
        TypeError: An argument is not a tensor, or its dtype does not go with ``x``'s.
        ValueError: A shape, a device, the geometry, ``activation`` or ``backend`` is wrong. The message names it.
        RuntimeError: The requested backend cannot run.
    """
    options: dict[str, Any] = {
        "stride": stride, "padding": padding, "output_padding": output_padding, "dilation": dilation
    }  # fmt: skip
    if isinstance(weight, Tensor) and weight.dim() == 3:
        check_tensor(OP, "x", x)
        if x.dim() not in (2, 3):
            expected = "(N, C, L) or (C, L), because weight is (C, K/groups, S)"
            fail(ValueError, OP, "x", expected, f"shape {tuple(x.shape)}")
        if residual is not None and check_tensor(OP, "residual", residual).dim() != x.dim():
            fail(ValueError, OP, "residual", f"{x.dim()} dimensions, as x has", f"shape {tuple(residual.shape)}")
        pairs = {k: for_height_1(v, int(k in ("stride", "dilation"))) for k, v in options.items()}
        y = conv_transpose_bn_act(
            x.unsqueeze(-2), weight.unsqueeze(2), bias, running_mean, running_var, bn_weight, bn_bias, eps=eps,
            residual=None if residual is None else residual.unsqueeze(-2), groups=groups, activation=activation,
            negative_slope=negative_slope, backend=backend, **pairs,
        )  # fmt: skip
        return y.squeeze(-2)
    call = transposed_call(x, weight, residual, options, groups, activation, negative_slope)
    norm = BatchNorm(bias, running_mean, running_var, bn_weight, bn_bias, eps)
    check_batch_norm(x, weight.shape[1] * groups, norm, OP)
    x, weight, residual = cast(autocast_dtype(x), (x, weight, residual))
    where = choose(CONV_TRANSPOSE_BN_ACT, x.device, x.dtype, backend)
    if where == "reference":
        return reference(x, weight, norm, residual, call)
    folded = fold_batch_norm(*norm)
    ops = kernels(where, CONV_BN_ACT)
    if x.dim() == 4:
        return _by_phases(ops, x, weight, *folded, residual, call)
    return _by_phases(ops, x[None], weight, *folded, None if residual is None else residual[None], call)[0]


def transposed_call(
    x: Tensor,
    weight: Tensor,
    residual: Tensor | None,
    options: dict[str, Any],
    groups: int,
    activation: str,
    negative_slope: float,
) -> TransposedCall:
    """The call, checked; raises where the tensors and the rest do not go together."""
    code = activation_code(OP, activation)
    check_number(OP, "negative_slope", negative_slope)
    check_tensor(OP, "x", x)
    check_floating(OP, "x", x)
    any_float = autocast_dtype(x) is not None
    check_like(OP, "weight", weight, x, any_float=any_float)
    if x.dim() not in (3, 4):
        fail(ValueError, OP, "x", "(N, C, H, W) or (C, H, W)", f"shape {tuple(x.shape)}")
    if weight.dim() != 4:
        fail(ValueError, OP, "weight", "(C, K/groups, R, S)", f"shape {tuple(weight.shape)}")
    strides, dilations = pair(OP, "stride", options["stride"], 1), pair(OP, "dilation", options["dilation"], 1)
    pads, more = pair(OP, "padding", options["padding"], 0), pair(OP, "output_padding", options["output_padding"], 0)
    check_int(OP, "groups", groups, 1)
    if any(m >= max(s, d) for m, s, d in zip(more, strides, dilations, strict=True)):
        fail(ValueError, OP, "output_padding", f"less than stride {strides} or dilation {dilations}", more)
    c, k, r, s = weight.shape
    *batch, channels, height, width = x.shape
    if 0 in weight.shape:
        fail(ValueError, OP, "weight", "sizes of at least 1", f"shape {tuple(weight.shape)}")
    if c % groups:
        fail(ValueError, OP, "weight", f"C divisible by groups = {groups}", f"C = {c}")
    if c != channels:
        fail(ValueError, OP, "x", f"{c} channels (weight {tuple(weight.shape)})", f"{channels} in {tuple(x.shape)}")
    if height == 0 or width == 0:
        fail(ValueError, OP, "x", "H and W of at least 1", f"shape {tuple(x.shape)}")
    call = TransposedCall(strides, pads, more, dilations, groups, code, negative_slope)
    size = call.output_size((height, width), (r, s))
    if min(size) < 1:
        fail(ValueError, OP, "padding", "an output of at least 1 x 1", f"{size[0]} x {size[1]}, padding {pads}")
    if residual is not None:
        check_like(OP, "residual", residual, x, any_float=any_float)
        check_shape(OP, "residual", residual, (*batch, k * groups, *size), "the output's shape")
    return call


def reference(x: Tensor, weight: Tensor, norm: BatchNorm, residual: Tensor | None, call: TransposedCall) -> Tensor:
    """`conv_transpose_bn_act` of arguments that have been checked, in plain PyTorch."""
    z = F.conv_transpose2d(
        x, weight, None, call.stride, call.padding, call.output_padding, call.groups, call.dilation
    )  # fmt: skip
    return finish(z, norm, residual, call.activation, call.negative_slope)


def _by_phases(
    ops: Any,
    x: Tensor,
    weight: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    residual: Tensor | None,
    call: TransposedCall,
) -> Tensor:
    filters, (n, _, height, width) = as_filters(weight, call.groups), x.shape
    rows, columns = call.phases(weight.shape[2:])
    backwards = filters.flip(2, 3)  # one copy, of which each phase takes a slice
    (down, across), k = call.stride, filters.shape[0]

    def run(row: Phase, column: Phase) -> Tensor:
        part = None if residual is None else residual[:, :, row.first :: down, column.first :: across]
        rest = call.activation, call.negative_slope, tf32_allowed(x.device)
        if row.reads(height) < 1 or column.reads(width) < 1:  # zeros, and no product with what lies in x
            zeros = x.new_zeros(n, 1, height + row.more, width + column.more)
            flat = ConvCall(Geometry((1, 1), (0, 0, 0, 0), (1, 1), 1), *rest).flat()
            return ops.conv_bn_act(zeros, x.new_zeros(k, 1, 1, 1), scale, shift, part, *flat)
        around = row.before, column.before, row.after, column.after
        top, left, bottom, right = (max(-p, 0) for p in around)
        padding: Any = tuple(max(p, 0) for p in around)
        flat = ConvCall(Geometry((1, 1), padding, (row.dilation, column.dilation), call.groups), *rest).flat()
        taps = backwards[:, :, row.of_reversed(weight.shape[2]), column.of_reversed(weight.shape[3])]
        return ops.conv_bn_act(x[:, :, top : height - bottom, left : width - right], taps, scale, shift, part, *flat)

    if down == across == 1:
        return run(rows[0], columns[0])
    y = torch.empty(
        (n, k, *call.output_size((height, width), weight.shape[2:])), dtype=x.dtype, device=x.device,
        memory_format=suggest_memory_format(x),
    )  # fmt: skip
    for row in rows:
        for column in columns:
            if height + row.more > 0 and width + column.more > 0:
                y[:, :, row.first :: down, column.first :: across] = run(row, column)
    return y
