"""LSTMs in a quantised program: int8 forms of the model's own, made again when its weights have changed."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor, nn

from pykernels.nn import LSTM, Int8LSTM, Int8LSTMCell, LSTMCell
from pykernels.nn._last_step import last_step
from pykernels.nn.lstm import zero_states
from pykernels.optimize._graph import Graph, Step, Value
from pykernels.optimize._last_step import takes_last_step
from pykernels.optimize._sources import Sources
from pykernels.optimize._watch import kind_of, plain

_KINDS = nn.LSTM, LSTM, nn.LSTMCell, LSTMCell


class Int8LastStep(Int8LSTM):
    """`Int8LSTM`, (B, T, I) or (T, B, I) to the last step of its output, (B, 2 H), as `LastStepLSTM` is in float."""

    def forward(self, input: Tensor) -> Tensor:  # type: ignore[override]
        """From states of zeros."""
        return self._run(input, zero_states(self, input, None), None)  # type: ignore[return-value]

    def _last(self, y: Tensor) -> Tensor:
        return y[:, -1] if self.batch_first else y[-1]

    def _run_plain(self, x: Tensor, hx: Any, batch_sizes: Tensor | None) -> Any:
        return self._last(super()._run_plain(x, hx, batch_sizes)[0])

    def _make(self, tensors: list[Any], dtype: torch.dtype) -> Any:
        """The lower layers, the top layer forward, and backward."""
        weights, scales = tensors[: len(self._names)], tensors[len(self._names) :]
        weights = [w if w.dtype is torch.int8 else w.float() for w in weights]
        each, pack = 4 if self.bias else 2, torch.ops.pykernels.int8_lstm_pack.default
        below = None
        if self.num_layers > 1:
            below = pack(weights[: -2 * each], scales[:-4], self.num_layers - 1, True, self.bias, self.weight_only)
        forward = pack(weights[-2 * each : -each], scales[-4:-2], 1, False, self.bias, self.weight_only)
        return below, forward, pack(weights[-each:], scales[-2:], 1, False, self.bias, self.weight_only)

    def _run_packed(self, x: Tensor, h0: Tensor, c0: Tensor, pack: Any, batch_sizes: Tensor | None) -> Any:
        run, step = self._ops()
        return last_step(self, run, step, x, h0, c0, pack.value)


class Followed(nn.Module):
    """The int8 ``form`` of ``source``, made again when the parameters of ``source`` have changed."""

    source: Any
    form: Any
    weight_only: bool
    int8: Any

    def __init__(self, source: nn.Module, form: type[nn.Module], weight_only: bool) -> None:
        super().__init__()
        vars(self).update(source=source, form=form, weight_only=weight_only)
        #: Does it give the last time step of the output alone?
        self.is_last_step = form is Int8LastStep
        self.int8 = None

    def is_stale(self) -> bool:
        """Have the parameters changed, or is there no int8 form as yet?"""
        return self.int8 is None or not self.int8.sources.are_current()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As the int8 form's."""
        found: Any = self.int8
        if found is None or not found.sources.are_current():
            with torch.inference_mode(False), torch.no_grad():
                sources = Sources(list(self.source.parameters()))
                found = self.form.from_torch(plain(self.source), weight_only=self.weight_only).eval()
                found.sources = sources
            self.int8 = found  # in one assignment: another thread may call
        return found(*args, **kwargs)


def lstms_in(graph: Graph) -> list[Step]:
    """The calls of LSTMs, of sequences or of cells."""
    return [s for s in graph.steps if s.kind == "module" and kind_of(s.function) in _KINDS]


def use_int8_lstms(
    graph: Graph, why_float: Callable[[Step], str], store: dict[Hashable, Any], reasons: dict[Step, str],
    weight_only: bool,
) -> dict[Step, Step]:  # fmt: skip
    """Puts int8 forms in the place of LSTMs. Returns the steps of these, each by itself; ``reasons`` get the others."""
    made: dict[Step, Step] = {}
    for step in lstms_in(graph):
        kind, module = kind_of(step.function), step.function
        why = _why_no_kernel(step) or why_float(step)
        if why:
            reasons[step] = why
            continue
        form: type[nn.Module] = Int8LSTMCell
        if kind in (nn.LSTM, LSTM):
            form = Int8LastStep if takes_last_step(graph, step, plain(module)) else Int8LSTM
        key = "int8", form, id(module)
        if key not in store:
            store[key] = Followed(module, form, weight_only), module
        step.function = store[key][0]
        step.note = f"{'weight-only ' if weight_only else ''}Int8{kind.__name__}"
        made[step] = step
    return made


def _why_no_kernel(step: Step) -> str:
    x, module = next(step.reads(), None), step.function
    if getattr(module, "proj_size", 0):
        return "there are no int8 kernels for projections"
    if nn.utils.parametrize.is_parametrized(module):
        return "its weights are parametrised"
    on_cpu = all(p.device.type == "cpu" and p.dtype is torch.float32 for p in module.parameters())
    fits = on_cpu and isinstance(x, Value) and x.dtype is torch.float32
    return "" if fits else "LSTMs run in int8 on a CPU, from float32"
