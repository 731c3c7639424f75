"""LSTM: one step, and whole sequences with layers, both directions and packed data; forward and backward.

i, f, g, o = x W_ih' + b_ih + h W_hh' + b_hh
c' = sigmoid(f) c + sigmoid(i) tanh(g)
h' = sigmoid(o) tanh(c')
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from pykernels.ops._arguments import check_tensor, fail
from pykernels.ops._autocast import autocast_dtype, autocast_off, cast
from pykernels.ops._dispatch import choose, kernels
from pykernels.ops.lstm import autograd, reference
from pykernels.ops.lstm.arguments import LSTMCall, States, check_cell, check_lstm, two_states
from pykernels.ops.lstm.op import LSTM, LSTM_CELL


def lstm_cell(
    x: Tensor,
    states: States,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
    *,
    backend: str | None = None,
) -> States:
    """Runs one step of an LSTM.

    It computes the same as::

        torch.lstm_cell(x, (h, c), w_ih, w_hh, b_ih, b_hh)

    Args:
        x: (B, I), or (I,) for one unbatched step. The kernels take float32, bfloat16 and, on CUDA, float16; the
            reference takes any floating dtype.
        states: (h, c), each (B, H), or (H,) if ``x`` is unbatched.
        w_ih: (4H, I), gates i, f, g, o.
        w_hh: (4H, H).
        b_ih: (4H,) or None.
        b_hh: (4H,) or None.
        backend: "auto", "cpu", "cuda", "triton" or "reference"; None means that of the `pykernels.backend` block.

    Returns:
        (h, c), each (B, H) or (H,), contiguous, of ``x``'s dtype (autocast's, inside autocast).

    Raises:
        TypeError: An argument is not a tensor, or its dtype does not fit; the message says which.
        ValueError: A shape or a device does not fit.
        RuntimeError: The requested backend cannot run.

    The op is differentiable twice: the first backward pass is native, the second goes through the reference. So does
    everything inside `torch.func`'s transforms and forward-mode differentiation, which refuse another explicit backend.
    The kernels accumulate in float32, and the same input with the same number of threads gives the same bits.
    `pykernels.ops.lstm.spec` has the tolerance.
    The equations are those of Hochreiter and Schmidhuber (1997) with the forget gate of Gers, Schmidhuber and Cummins
    (2000).
    """
    op = "lstm_cell"
    check_tensor(op, "x", x)
    h, c = two_states(op, states, ("h", "c"))
    check_tensor(op, "w_ih", w_ih)
    check_tensor(op, "w_hh", w_hh)
    b_ih = b_ih if b_ih is None else check_tensor(op, "b_ih", b_ih)
    b_hh = b_hh if b_hh is None else check_tensor(op, "b_hh", b_hh)
    dtype = autocast_dtype(x)
    x, h, c, w_ih, w_hh, b_ih, b_hh = cast(dtype, (x, h, c, w_ih, w_hh, b_ih, b_hh))
    check_cell(x, h, c, w_ih, w_hh, b_ih, b_hh)
    if (b_ih is None) != (b_hh is None):
        b_ih = torch.zeros_like(w_ih[:, 0]) if b_ih is None else b_ih
        b_hh = torch.zeros_like(w_ih[:, 0]) if b_hh is None else b_hh
    with autocast_off(dtype, x):
        where = choose(LSTM_CELL, x.device, x.dtype, backend)
        if where == "reference":
            return reference.lstm_cell(x, (h, c), w_ih, w_hh, b_ih, b_hh)
        unbatched = x.dim() == 1
        if unbatched:
            x, h, c = x.unsqueeze(0), h.unsqueeze(0), c.unsqueeze(0)
        save = autograd.wanted(x, h, c, w_ih, w_hh, b_ih, b_hh)
        h, c, _ = kernels(where, LSTM_CELL).lstm_cell.default(x, h, c, w_ih, w_hh, b_ih, b_hh, save)
        return (h.squeeze(0), c.squeeze(0)) if unbatched else (h, c)


def lstm(
    x: Tensor,
    states: States,
    weights: Sequence[Tensor],
    *,
    num_layers: int = 1,
    bidirectional: bool = False,
    batch_first: bool = False,
    dropout: float = 0.0,
    training: bool = False,
    batch_sizes: Tensor | None = None,
    backend: str | None = None,
) -> tuple[Tensor, States]:
    """Runs an LSTM over whole sequences.

    It computes the same as::

        torch.lstm(x, (h0, c0), weights, has_biases, num_layers, dropout, training, bidirectional, batch_first)
        torch.lstm(data, batch_sizes, (h0, c0), weights, has_biases, num_layers, dropout, training, bidirectional)

    Args:
        x: (T, B, I); (B, T, I) with ``batch_first``; (T, I) for one unbatched sequence; with ``batch_sizes`` the data
            of a PackedSequence, (sum of batch_sizes, I). The kernels take float32, bfloat16 and, on CUDA, float16; the
            reference takes any floating dtype.
        states: (h0, c0), each (num_layers * D, B, H), without B if ``x`` is unbatched; D = 2 with ``bidirectional``,
            else 1.
        weights: For every layer and direction in turn w_ih (4H, I or D * H), w_hh (4H, H) and, in an LSTM with biases,
            b_ih (4H,) and b_hh (4H,): nn.LSTM's flat order. Their number says whether there are biases.
        num_layers: How many layers there are; each takes the output of the one before.
        bidirectional: Whether each layer also runs over the reversed sequence; the two outputs are concatenated.
        batch_first: Whether the batch is the first dimension of ``x`` and of the output; unbatched and packed input
            ignores it.
        dropout: The probability of a zero in the output of every layer except the last. torch's generator draws the
            masks, so the same seed gives the masks of nn.LSTM.
        training: Whether there is dropout.
        batch_sizes: (T,) int64 on the CPU, not rising: PackedSequence.batch_sizes.
        backend: "auto", "cpu", "cuda", "triton" or "reference"; None means that of the `pykernels.backend` block.

    Returns:
        The output, of ``x``'s shape with D * H in place of I; and (h_n, c_n), the states after each sequence's last
        step, of the shape of ``states``.

    Raises:
        TypeError: An argument is not a tensor, or its dtype does not fit; the message says which.
        ValueError: A shape, a device, the number of weights or ``batch_sizes`` do not fit, or there is no time step.
        RuntimeError: The requested backend cannot run.

    The op is differentiable twice: the first backward pass is native, the second goes through the reference. So does
    everything inside `torch.func`'s transforms and forward-mode differentiation, which refuse another explicit backend.
    The kernels accumulate in float32, and the same input with the same number of threads gives the same bits.
    `pykernels.ops.lstm.spec` has the tolerance.
    On a CPU the op packs its weights at every call; `pykernels.nn.LSTM` packs them once.
    The kernels compute one product for the inputs of all time steps, then the recurrence (Appleyard, Kocisky, Blunsom,
    2016), with a share of the units for each thread (Zhang et al., DeepCPU, ATC 2018).
    """
    op = "lstm"
    check_tensor(op, "x", x)
    h0, c0 = two_states(op, states, ("h0", "c0"))
    if isinstance(weights, Tensor) or not hasattr(weights, "__iter__"):
        fail(TypeError, op, "weights", "a sequence of tensors", type(weights).__name__)
    flat = [check_tensor(op, f"weights[{i}]", w) for i, w in enumerate(weights)]
    dtype = autocast_dtype(x)
    x, h0, c0, flat = cast(dtype, (x, h0, c0, flat))
    call = check_lstm(x, h0, c0, flat, batch_sizes, LSTMCall(num_layers, bidirectional, batch_first), dropout)
    dropout = dropout if training and num_layers > 1 else 0.0
    with autocast_off(dtype, x):
        where = choose(LSTM, x.device, x.dtype, backend)
        if where == "reference":
            return reference.sequences(x, (h0, c0), flat, batch_sizes, call, dropout)
        unbatched = x.dim() == 2 and batch_sizes is None
        if unbatched:
            x, h0, c0, call = x.unsqueeze(1), h0.unsqueeze(1), c0.unsqueeze(1), call._replace(batch_first=False)
        if dropout > 0:
            output, h_n, c_n = _with_dropout(where, x, h0, c0, flat, batch_sizes, call, dropout)
        else:
            output, h_n, c_n = _call_kernels(where, x, h0, c0, flat, batch_sizes, call)
        if unbatched:
            return output.squeeze(1), (h_n.squeeze(1), c_n.squeeze(1))
        return output, (h_n, c_n)


def _call_kernels(
    where: str, x: Tensor, h0: Tensor, c0: Tensor, weights: list[Tensor], batch_sizes: Tensor | None, call: LSTMCall
) -> tuple[Tensor, Tensor, Tensor]:
    save = autograd.wanted(x, h0, c0, *weights)
    output, h_n, c_n, _ = kernels(where, LSTM).lstm.default(x, h0, c0, weights, batch_sizes, *call, save)
    return output, h_n, c_n


def _with_dropout(
    where: str,
    x: Tensor,
    h0: Tensor,
    c0: Tensor,
    weights: list[Tensor],
    batch_sizes: Tensor | None,
    call: LSTMCall,
    dropout: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Layer by layer, time first, as torch does it: then a seed gives torch's masks."""
    transposed = call.batch_first and batch_sizes is None
    if transposed:
        x = x.transpose(0, 1)
    one, each = call._replace(num_layers=1, batch_first=False), len(weights) // call.num_layers
    last_h, last_c = [], []
    for layer in range(call.num_layers):
        if layer > 0:
            x = F.dropout(x, dropout)
        rows = slice(layer * call.directions, (layer + 1) * call.directions)
        own = weights[layer * each : (layer + 1) * each]
        x, h, c = _call_kernels(where, x, h0[rows], c0[rows], own, batch_sizes, one)
        last_h.append(h)
        last_c.append(c)
    return (x.transpose(0, 1) if transposed else x), torch.cat(last_h), torch.cat(last_c)
