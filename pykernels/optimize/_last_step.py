"""A bidirectional LSTM whose output is read at the last time step only, as classifiers of sequences do.

They write ``lstm(x)[0][:, -1]``. At that step the top layer's backward direction has taken one step, its first. Nobody
reads its other steps, which are a quarter of the work of two layers, so we leave them out.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pykernels.nn import LSTM
from pykernels.nn._packed import Pack
from pykernels.nn.lstm import States
from pykernels.optimize._graph import Graph, Step, Value, bound

#: If the steps left out have fewer multiply-adds than this, leaving them out costs more (two more calls) than it gains.
_WORTH = 1 << 22


class LastStepLSTM(LSTM):
    """The same LSTM, from (B, T, I) or (T, B, I) to the last step of its output, (B, 2 H)."""

    def forward(self, input: Tensor) -> Tensor:  # type: ignore[override]
        """From states of zeros."""
        return self._run(input, self._zero_states(input, None), None)  # type: ignore[return-value]

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
        run, hidden, first = torch.ops.pykernels.lstm_packed.default, self.hidden_size, self.batch_first
        below, forward, backward = pack.value
        inputs = self.input_size
        if below is not None:
            x = run(x, h0[:-2], c0[:-2], below, inputs, hidden, None, self.num_layers - 1, True, first)[0]
            inputs = 2 * hidden
        h, c = h0[:1], c0[:1]
        there = run(x, h, c, forward, inputs, hidden, None, 1, False, first)[1]
        back = torch.ops.pykernels.lstm_cell_packed.default(self._last(x), h[0], c[0], backward, inputs, hidden)[0]
        return torch.cat((there[0], back), 1)


def last_step_of(graph: Graph, step: Step, lstm: Any) -> Step | None:
    """The step that takes the last time step of the output of ``step``, a call of ``lstm``, if nothing else is read."""
    given = bound(step, ("input", "hx"))
    x = given.get("input")
    if not lstm.bidirectional or given.get("hx") is not None or not isinstance(x, Value) or len(x.shape) != 3:
        return None
    users = graph.users()
    output, *rest = step.results()
    readers = users.get(output, [])
    taker = readers[0] if len(readers) == 1 else None
    if taker is None or any(v in users for v in rest) or taker.kind != "call" or taker.name() != "__getitem__":
        return None
    # Somebody who gets the result, or writes to it, could tell a new tensor from a view.
    taken = taker.outputs
    if not isinstance(taken, Value) or None in users.get(taken, []) or any(output in s.writes for s in graph.steps):
        return None
    if any(taken.storage in {v.storage for v in s.writes} for s in graph.steps):
        return None
    index: Any = taker.args[1] if len(taker.args) == 2 and not taker.kwargs else None
    wanted = ((slice(None), -1), (slice(None), -1, slice(None))) if lstm.batch_first else (-1, (-1,))
    if not any(type(index) is type(i) and index == i for i in wanted):
        return None
    hidden, rows = lstm.hidden_size, x.shape[0] * x.shape[1]
    inputs = 2 * hidden if lstm.num_layers > 1 else lstm.input_size
    return taker if 4 * hidden * (hidden + inputs) * rows >= _WORTH else None
