"""The int8 LSTM as plain PyTorch, on any device: the oracle, and the last fallback.

    q(r) = round(r / s), s = max|r| / 127                   a row of x_t, of h_{t-1}, or of the layer below
    z = q(x_t) W_ih' s_x s_ih + (b_ih + b_hh) + q(h_{t-1}) W_hh' s_h s_hh
    c_t = sigmoid(f) c_{t-1} + sigmoid(i) tanh(g),   h_t = sigmoid(o) tanh(c_t)

The sums are exact. All that is not int8 is float32, whatever the dtype of x, and each operation below rounds once: so
the kernels (csrc/cpu/int8_lstm/gates.h) have the same bits. A state that differed in its last bit could round to
another int8 at the next step.

With ``weight_only`` it is lstm's reference on W' s, in float32 or float64.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pykernels.ops.int8_matmul.reference import quantize_int8_reference
from pykernels.ops.lstm import reference as float_reference
from pykernels.ops.lstm.arguments import LSTMCall, States
from pykernels.ops.lstm.reference import over_layers, over_steps


def _polynomial(x: Tensor, coefficients: Sequence[float]) -> Tensor:
    value = x * coefficients[0] + coefficients[1]
    for coefficient in coefficients[2:]:
        value = value * x + coefficient
    return value


def _exp(x: Tensor, i: int = 0) -> Tensor:
    """exp(x) * 2^i for -88 <= x <= 89, by Cody and Waite's reduction, as csrc/cpu/vec_math.h has it."""
    n = (x * 1.44269504 + 12582912.0) - 12582912.0
    r = (x - n * 0.693359375) + n * 2.12194440e-4
    p = _polynomial(
        r, (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)
    )
    power = ((n.to(torch.int32) + (127 + i)) << 23).view(torch.float32)
    return ((p * r) * r + (r + 1.0)) * power


def exact_sigmoid(x: Tensor) -> Tensor:
    """sigmoid of a float32 tensor, with the same bits everywhere."""
    return 1.0 / (_exp((-x).clamp(-87.0, 89.0), -1) * 2.0 + 1.0)


def exact_tanh(x: Tensor) -> Tensor:
    """tanh of a float32 tensor, with the same bits everywhere."""
    z = x * x
    p = _polynomial(z, (-5.70498872745e-3, 2.06390887954e-2, -5.37397155531e-2, 1.33314422036e-1, -3.33332819422e-1))
    near = x * (p * z + 1.0)
    far = 1.0 - 2.0 / (_exp((x * 2.0).clamp(-88.0, 80.0)) + 1.0)
    return torch.where(x.abs() < 0.625, near, far)


def _product(x: Tensor, w: Tensor, scale: Tensor) -> Tensor:
    """x: (B, K), float32; w: (4H, K), float64, in which sums are exact up to 2^53."""
    q, x_scale, _ = quantize_int8_reference(x, axis=0)
    sums = (q.double() @ w.t()).float()
    return sums * (scale * x_scale.unsqueeze(1))


def _step(gates: Tensor, c: Tensor) -> States:
    """gates: (B, 4H) before the activations; c: (B, H)."""
    i, f, g, o = gates.chunk(4, dim=-1)
    c = exact_sigmoid(f) * c + exact_sigmoid(i) * exact_tanh(g)
    return exact_sigmoid(o) * exact_tanh(c), c


def scaled(weights: Sequence[Tensor], scales: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """``weights`` in floats: matrices times the scales of their rows, which come in the same order."""
    steps = iter(scales)
    return [w.to(dtype) * next(steps).to(dtype)[:, None] if w.dim() == 2 else w.to(dtype) for w in weights]


def int8_lstm_cell(
    x: Tensor, states: States, w_ih: Tensor, w_hh: Tensor, s_ih: Tensor, s_hh: Tensor, b_ih: Tensor | None = None,
    b_hh: Tensor | None = None, *, weight_only: bool = False,
) -> States:  # fmt: skip
    """One step. See `pykernels.ops.int8_lstm_cell`."""
    if weight_only:
        wide = torch.promote_types(x.dtype, torch.float32)
        w_ih, w_hh = scaled([w_ih, w_hh], [s_ih, s_hh], wide)
        h, c = states
        h, c = float_reference.lstm_cell(x.to(wide), (h.to(wide), c.to(wide)), w_ih, w_hh, b_ih, b_hh)
        return h.to(x.dtype), c.to(x.dtype)
    rows, h, c = (t if t.dim() == 2 else t.unsqueeze(0) for t in (x, *states))
    weights = [w_ih, w_hh] if b_ih is None or b_hh is None else [w_ih, w_hh, b_ih, b_hh]
    _, h, c = _direction(rows, [rows.shape[0]], h, c, weights, (s_ih, s_hh), reverse=False)
    h, c = h.to(x.dtype), c.to(x.dtype)
    return (h, c) if x.dim() == 2 else (h.squeeze(0), c.squeeze(0))


def _direction(
    rows: Tensor, sizes: Sequence[int], h: Tensor, c: Tensor, weights: Sequence[Tensor], scales: Sequence[Tensor],
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """One layer in one direction over packed rows, as `pykernels.ops.lstm.reference.Direction`."""
    w_ih, w_hh, *biases = (w.double() if w.dim() == 2 else w.float() for w in weights)
    s_ih, s_hh = (s.float() for s in scales)
    # Without biases the kernels add zeros, which turns -0 into 0; no curve tells them apart.
    gates = _product(rows.float(), w_ih, s_ih)
    if biases:
        gates = gates + (biases[0] + biases[1])
    step = lambda gates, h, c: _step(gates + _product(h, w_hh, s_hh), c)  # noqa: E731
    return over_steps(gates, sizes, h.float(), c.float(), step, reverse)


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
) -> tuple[Tensor, States]:
    """Whole sequences. See `pykernels.ops.int8_lstm`."""
    call = LSTMCall(num_layers, bidirectional, batch_first)
    return sequences(x, states, weights, scales, batch_sizes, call, weight_only)


def sequences(
    x: Tensor, states: States, weights: Sequence[Tensor], scales: Sequence[Tensor], batch_sizes: Tensor | None,
    call: LSTMCall, weight_only: bool = False,
) -> tuple[Tensor, States]:  # fmt: skip
    """The same by its `LSTMCall`."""
    if weight_only:
        wide = torch.promote_types(x.dtype, torch.float32)
        floats = scaled(weights, scales, wide)
        output, (h_n, c_n) = float_reference.sequences(
            x.to(wide), (states[0].to(wide), states[1].to(wide)), floats, batch_sizes, call
        )
        return output.to(x.dtype), (h_n.to(x.dtype), c_n.to(x.dtype))
    each = len(weights) // (call.num_layers * call.directions)

    def direction(rows: Tensor, sizes: Sequence[int], h: Tensor, c: Tensor, at: int) -> tuple[Tensor, Tensor, Tensor]:
        own, their_scales = weights[at * each : (at + 1) * each], scales[2 * at : 2 * at + 2]
        return _direction(rows, sizes, h, c, own, their_scales, at % call.directions == 1)

    return over_layers("int8_lstm", x, states, batch_sizes, call, direction)
