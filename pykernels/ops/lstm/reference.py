"""LSTM as plain PyTorch: any device, float64, differentiable twice. The oracle, and the last fallback.

    i, f, g, o = x W_ih' + b_ih + h W_hh' + b_hh        gates in nn.LSTM's order, each H wide
    c' = sigmoid(f) c + sigmoid(i) tanh(g)
    h' = sigmoid(o) tanh(c')

bfloat16 and float16 compute in float32, and round once, where a layer hands its output on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from pykernels.ops.lstm.arguments import LSTMCall, States, check_sizes

#: direction(rows, sizes, h, c, at): one layer in one direction, the at-th of all, over packed rows (sum(sizes), I), of
#: which step t has sizes[t], from the states h, c (B, H). It gives the output (sum(sizes), H), and the last states.
Direction = Callable[[Tensor, Sequence[int], Tensor, Tensor, int], tuple[Tensor, Tensor, Tensor]]


def _computing(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype


def _step(gates: Tensor, c: Tensor) -> States:
    """gates: (B, 4H) before the activations; c: (B, H)."""
    i, f, g, o = gates.chunk(4, dim=-1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def lstm_cell(
    x: Tensor, states: States, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor | None = None, b_hh: Tensor | None = None
) -> States:
    """One step. See `pykernels.ops.lstm_cell`."""
    wide = _computing(x.dtype)
    h, c = states
    gates = x.to(wide) @ w_ih.to(wide).t() + h.to(wide) @ w_hh.to(wide).t()
    for bias in (b_ih, b_hh):
        gates = gates if bias is None else gates + bias.to(wide)
    h, c = _step(gates, c.to(wide))
    return h.to(x.dtype), c.to(x.dtype)


def over_steps(
    gates: Tensor, sizes: Sequence[int], h: Tensor, c: Tensor, step: Callable[[Tensor, Tensor, Tensor], States],
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """``step(gates, h, c)`` at each time, on the sequences that are in its batch.

    gates: (sum(sizes), 4H), what x gives; h, c: (B, H), B >= every size. A sequence that is not in a step's batch keeps
    its state: it has ended, or (reverse) has not begun. Returns output (sum(sizes), H), h (B, H), c (B, H).
    """
    steps = list(gates.split(list(sizes)))
    outputs: list[Tensor] = [gates] * len(steps)
    for t in reversed(range(len(steps))) if reverse else range(len(steps)):
        b = sizes[t]
        h_new, c_new = step(steps[t], h[:b], c[:b])
        outputs[t] = h_new
        h = h_new if b == h.shape[0] else torch.cat([h_new, h[b:]])
        c = c_new if b == c.shape[0] else torch.cat([c_new, c[b:]])
    return torch.cat(outputs), h, c


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
) -> tuple[Tensor, States]:
    """Whole sequences. See `pykernels.ops.lstm`."""
    call = LSTMCall(num_layers, bidirectional, batch_first)
    return sequences(x, states, weights, batch_sizes, call, dropout if training else 0.0)


def sequences(
    x: Tensor,
    states: States,
    weights: Sequence[Tensor],
    batch_sizes: Tensor | None,
    call: LSTMCall,
    dropout: float = 0.0,
) -> tuple[Tensor, States]:
    """The same by its `LSTMCall`; ``dropout`` is that of training."""
    wide = _computing(x.dtype)
    each = len(weights) // (call.num_layers * call.directions)

    def direction(rows: Tensor, sizes: Sequence[int], h: Tensor, c: Tensor, at: int) -> tuple[Tensor, Tensor, Tensor]:
        w_ih, w_hh, *biases = (w.to(wide) for w in weights[at * each : (at + 1) * each])
        gates = rows.to(wide) @ w_ih.t()
        for bias in biases:
            gates = gates + bias
        step = lambda gates, h, c: _step(gates + h @ w_hh.t(), c)  # noqa: E731
        output, h, c = over_steps(gates, sizes, h.to(wide), c.to(wide), step, at % call.directions == 1)
        return output.to(x.dtype), h, c

    return over_layers("lstm", x, states, batch_sizes, call, direction, dropout)


def over_layers(
    op: str,
    x: Tensor,
    states: States,
    batch_sizes: Tensor | None,
    call: LSTMCall,
    direction: Direction,
    dropout: float = 0.0,
) -> tuple[Tensor, States]:
    """All layers in all directions, whatever form the sequences have; the results are of ``x``'s dtype."""
    (h0, c0), batch_first = states, call.batch_first
    unbatched = batch_sizes is None and x.dim() == 2
    if unbatched:
        x, h0, c0, batch_first = x.unsqueeze(1), h0.unsqueeze(1), c0.unsqueeze(1), False
    if batch_first and batch_sizes is None:
        x = x.transpose(0, 1)
    steps, rows = x.shape[:-1], x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    if batch_sizes is None:
        sizes = [x.shape[1]] * x.shape[0]
    else:
        sizes = [int(size) for size in batch_sizes]
        check_sizes(sizes, rows.shape[0], h0.shape[1], op)

    last_h, last_c = [], []
    for layer in range(call.num_layers):
        outputs = []
        for at in range(layer * call.directions, (layer + 1) * call.directions):
            output, h, c = direction(rows, sizes, h0[at], c0[at], at)
            outputs.append(output)
            last_h.append(h.to(x.dtype))
            last_c.append(c.to(x.dtype))
        rows = torch.cat(outputs, dim=-1)
        if dropout > 0 and layer + 1 < call.num_layers:
            rows = F.dropout(rows, dropout)

    output = rows.to(x.dtype).reshape(*steps, rows.shape[-1])
    h_n, c_n = torch.stack(last_h), torch.stack(last_c)
    if unbatched:
        return output.squeeze(1), (h_n.squeeze(1), c_n.squeeze(1))
    if batch_first and batch_sizes is None:
        output = output.transpose(0, 1)
    return output, (h_n, c_n)
