"""A bidirectional LSTM that computes only the last time step of its output, ``lstm(x)[0][:, -1]``.

The top layer's backward direction needs one step for that. Skipping the rest saves a quarter of the work of two layers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pykernels.nn._packed import Pack
from pykernels.nn.lstm import LSTM, States, zero_states


class LastStepLSTM(LSTM):
    """The same LSTM, (B, T, I) or (T, B, I) to the last step of its output, (B, 2 H)."""

    def forward(self, input: Tensor) -> Tensor:  # type: ignore[override]
        """From states of zeros."""
        return self._run(input, zero_states(self, input, None), None)  # type: ignore[return-value]

    def _run_plain(self, x: Tensor, hx: States, batch_sizes: Tensor | None) -> Any:
        return self._last(super()._run_plain(x, hx, batch_sizes)[0])

    def _last(self, y: Tensor) -> Tensor:
        return y[:, -1] if self.batch_first else y[-1]

    def _make(self, tensors: list[Any], dtype: torch.dtype) -> Any:
        """The lower layers, the top layer forward, and backward."""
        has_bias, each = len(tensors) == 4 * self._rows(), len(tensors) // self._rows()
        pack = torch.ops.pykernels.lstm_pack.default
        tensors = [t.to(dtype) for t in tensors]
        below = [pack(tensors[: -2 * each], self.num_layers - 1, True, has_bias)] if self.num_layers > 1 else [None]
        return (*below, *(pack(t, 1, False, has_bias) for t in (tensors[-2 * each : -each], tensors[-each:])))

    def _run_packed(self, x: Tensor, h0: Tensor, c0: Tensor, pack: Pack, batch_sizes: Tensor | None) -> Any:
        if x.dtype is not pack.dtype or torch._C._is_any_autocast_enabled():
            x, h0, c0 = x.to(pack.dtype), h0.to(pack.dtype), c0.to(pack.dtype)
        ops = torch.ops.pykernels
        return last_step(self, ops.lstm_packed.default, ops.lstm_cell_packed.default, x, h0, c0, pack.value)


def last_step(
    lstm: Any, run: Any, step: Any, x: Tensor, h0: Tensor, c0: Tensor, packed: tuple[Any, Any, Any]
) -> Tensor:
    """(B, 2 H), by the ops ``run`` of sequences and ``step`` of one step.

    ``packed`` are the lower layers, if any, the top layer forward, and backward.
    """
    below, forward, backward = packed
    inputs, hidden, first = lstm.input_size, lstm.hidden_size, lstm.batch_first
    if below is not None:
        x = run(x, h0[:-2], c0[:-2], below, inputs, hidden, None, lstm.num_layers - 1, True, first)[0]
        inputs = 2 * hidden
    h, c = h0[:1], c0[:1]
    there = run(x, h, c, forward, inputs, hidden, None, 1, False, first)[1]
    last = x[:, -1] if first else x[-1]
    return torch.cat((there[0], step(last, h[0], c[0], backward, inputs, hidden)[0]), 1)
