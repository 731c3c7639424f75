"""LSTM with int8 weights: one step, and whole sequences with layers, both directions and packed data; for inference.

Weights are int8 with a scale a row. Rows of x and h become int8 by their own largest magnitude. The sums are exact, and
the gates are computed in float32. With ``weight_only`` rows and sums are float32 too.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pykernels.ops._arguments import check_tensor, refuse_gradient
from pykernels.ops._autocast import autocast_dtype, autocast_off, cast
from pykernels.ops._dispatch import choose, kernels
from pykernels.ops.int8_lstm import autograd as autograd
from pykernels.ops.int8_lstm import reference
from pykernels.ops.int8_lstm.arguments import check_int8_cell, check_int8_lstm, tensors
from pykernels.ops.int8_lstm.op import (
    INT8_LSTM,
    INT8_LSTM_CELL,
    INT8_LSTM_CELL_WEIGHT_ONLY,
    INT8_LSTM_WEIGHT_ONLY,
)
from pykernels.ops.lstm.arguments import LSTMCall, States, two_states


def int8_lstm_cell(
    x: Tensor,
    states: States,
    w_ih: Tensor,
    w_hh: Tensor,
    s_ih: Tensor,
    s_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
    *,
    weight_only: bool = False,
    backend: str | None = None,
) -> States:
    """Runs one step of an LSTM with int8 weights.

    With the rows of ``x`` and ``h`` rounded to int8 on the way in, it computes::

        torch.lstm_cell(x, (h, c), w_ih * s_ih[:, None], w_hh * s_hh[:, None], b_ih, b_hh)

    Args:
        x: (B, I), or (I,) for one unbatched step. The kernels take float32 and bfloat16; the reference takes any
            floating dtype.
        states: (h, c), each (B, H), or (H,) if ``x`` is unbatched, of ``x``'s dtype.
        w_ih: (4H, I), int8, gates i, f, g, o.
        w_hh: (4H, H), int8.
        s_ih: (4H,), the scales of the rows of ``w_ih``.
        s_hh: (4H,), those of ``w_hh``.
        b_ih: (4H,) or None.
        b_hh: (4H,) or None.
        weight_only: Whether ``x`` and ``h`` stay float, as in `int8_lstm`.
        backend: "auto", "cpu" or "reference" ("cuda" and "triton" have no kernels); None means that of the
            `pykernels.backend` block.

    Returns:
        (h, c), each (B, H) or (H,), contiguous, of ``x``'s dtype (autocast's, inside autocast).

    Each row of ``x`` and of ``h``, whatever its size, has the scale max|row| / 127, as in `quantize_int8`. The sums are
    exact; all else is float32, each operation rounding by itself. So the result has the same bits on every instruction
    set, for any number of threads, in any batch, and from the reference. There is no gradient.

    Raises:
        TypeError: An argument is not a tensor, or its dtype does not fit; the message says which.
        ValueError: A shape or a device does not fit.
        RuntimeError: The requested backend cannot run, or a tensor requires a gradient, which quantisation lacks.
    """
    op = "int8_lstm_cell"
    check_tensor(op, "x", x)
    h, c = two_states(op, states, ("h", "c"))
    given = {"w_ih": w_ih, "w_hh": w_hh, "s_ih": s_ih, "s_hh": s_hh}
    given |= {name: b for name, b in (("b_ih", b_ih), ("b_hh", b_hh)) if b is not None}
    for name, t in given.items():
        check_tensor(op, name, t)
    dtype = autocast_dtype(x)
    x, h, c = cast(dtype, (x, h, c))
    check_int8_cell(x, h, c, w_ih, w_hh, s_ih, s_hh, b_ih, b_hh)
    refuse_gradient(op, x=x, h=h, c=c, s_ih=s_ih, s_hh=s_hh, b_ih=b_ih, b_hh=b_hh)
    if (b_ih is None) != (b_hh is None):
        b_ih = torch.zeros_like(s_ih) if b_ih is None else b_ih
        b_hh = torch.zeros_like(s_ih) if b_hh is None else b_hh
    with autocast_off(dtype, x):
        form = INT8_LSTM_CELL_WEIGHT_ONLY if weight_only else INT8_LSTM_CELL
        where = choose(form, x.device, x.dtype, backend, op)
        if where == "reference":
            return reference.int8_lstm_cell(x, (h, c), w_ih, w_hh, s_ih, s_hh, b_ih, b_hh, weight_only=weight_only)
        unbatched = x.dim() == 1
        if unbatched:
            x, h, c = x.unsqueeze(0), h.unsqueeze(0), c.unsqueeze(0)
        floats = [None if t is None else t.float() for t in (s_ih, s_hh, b_ih, b_hh)]
        h, c = kernels(where, form).int8_lstm_cell.default(x, h, c, w_ih, w_hh, *floats, weight_only)
        return (h.squeeze(0), c.squeeze(0)) if unbatched else (h, c)


def int8_lstm(
    x: Tensor,
    states: States,
    weights: Sequence[Tensor],
    scales: Sequence[Tensor],
    *,
    num_layers: int = 1,
    bidirectional: bool = False,
    batch_first: bool = False,
    batch_sizes: Tensor | None = None,
    weight_only: bool = False,
    backend: str | None = None,
) -> tuple[Tensor, States]:
    """Runs an LSTM with int8 weights over whole sequences.

    It computes `lstm` of the weights times their scales, with the rows of ``x``, of h and of what a layer hands to the
    next rounded to int8.

    Args:
        x: (T, B, I); (B, T, I) with ``batch_first``; (T, I) for one unbatched sequence; with ``batch_sizes`` the data
            of a PackedSequence, (sum of batch_sizes, I). The kernels take float32 and bfloat16; the reference takes any
            floating dtype.
        states: (h0, c0), each (num_layers * D, B, H), without B if ``x`` is unbatched, of ``x``'s dtype; D = 2 with
            ``bidirectional``, else 1.
        weights: For every layer and direction in turn w_ih (4H, I or D * H) and w_hh (4H, H), int8, and, in an LSTM
            with biases, b_ih (4H,) and b_hh (4H,) of any floating dtype: nn.LSTM's flat order.
        scales: For every layer and direction in turn the scales of the rows of w_ih and of w_hh, each (4H,).
        num_layers: How many layers there are; each takes the output of the one before.
        bidirectional: Whether each layer also runs over the reversed sequence; the two outputs are concatenated.
        batch_first: Whether the batch is the first dimension of ``x`` and of the output; unbatched and packed input
            ignores it.
        batch_sizes: (T,) int64 on the CPU, not rising: PackedSequence.batch_sizes.
        weight_only: Whether ``x`` and h stay float: then it is `lstm` of the weights times their scales, to a few
            float32 roundings, from a quarter of the bytes. Results for one sequence and several differ by roundings.
        backend: "auto", "cpu" or "reference" ("cuda" and "triton" have no kernels); None means that of the
            `pykernels.backend` block.

    Returns:
        The output, of ``x``'s shape with D * H in place of I; and (h_n, c_n), the states after each sequence's last
        step, of the shape of ``states``.

    Each row has the scale max|row| / 127, as in `quantize_int8`: also of ``h0``, whatever its size. The sums are exact;
    all else is float32, between the layers too, each operation rounding by itself. So a float32 result has the same
    bits on every instruction set, for any number of threads, in any batch, from the reference, and if a sequence is
    cut into several calls. A NaN in a row of x or h makes that sequence NaN from there on. There is no gradient.
    The op packs its weights at every call; `pykernels.nn.Int8LSTM` packs them once.

    Raises:
        TypeError: An argument is not a tensor, or its dtype does not fit; the message says which.
        ValueError: A shape, a device, the number of weights, ``scales`` or ``batch_sizes`` do not fit, or there is no
            time step.
        RuntimeError: The requested backend cannot run, or a tensor requires a gradient, which quantisation lacks.
    """
    op = "int8_lstm"
    check_tensor(op, "x", x)
    h0, c0 = two_states(op, states, ("h0", "c0"))
    flat, flat_scales = tensors(op, "weights", weights), tensors(op, "scales", scales)
    dtype = autocast_dtype(x)
    x, h0, c0 = cast(dtype, (x, h0, c0))
    call = LSTMCall(num_layers, bidirectional, batch_first)
    call = check_int8_lstm(x, h0, c0, flat, flat_scales, batch_sizes, call)
    named = {f"weights[{i}]": w for i, w in enumerate(flat)} | {f"scales[{i}]": s for i, s in enumerate(flat_scales)}
    refuse_gradient(op, x=x, h0=h0, c0=c0, **named)
    with autocast_off(dtype, x):
        form = INT8_LSTM_WEIGHT_ONLY if weight_only else INT8_LSTM
        where = choose(form, x.device, x.dtype, backend, op)
        if where == "reference":
            return reference.sequences(x, (h0, c0), flat, flat_scales, batch_sizes, call, weight_only)
        unbatched = x.dim() == 2 and batch_sizes is None
        if unbatched:
            x, h0, c0, call = x.unsqueeze(1), h0.unsqueeze(1), c0.unsqueeze(1), call._replace(batch_first=False)
        flat = [w.float() if w.is_floating_point() else w for w in flat]
        flat_scales = [s.float() for s in flat_scales]
        run = kernels(where, form).int8_lstm.default
        output, h_n, c_n = run(x, h0, c0, flat, flat_scales, batch_sizes, *call, weight_only)
        if unbatched:
            return output.squeeze(1), (h_n.squeeze(1), c_n.squeeze(1))
        return output, (h_n, c_n)
