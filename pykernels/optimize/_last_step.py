"""A bidirectional LSTM whose output is read at the last time step only, as classifiers of sequences do.

`LastStepLSTM` leaves out the steps that are for nobody.
"""

from __future__ import annotations

from typing import Any

from pykernels.optimize._graph import Graph, Step, Value, bound, is_torchs

#: If the steps left out have fewer multiply-adds than this, leaving them out costs more (two more calls) than it gains.
_WORTH = 1 << 22


def takes_last_step(graph: Graph, step: Step, lstm: Any) -> bool:
    """Whether the last time step is all that is read of the result of ``step``, a call of ``lstm``.

    If so, ``step`` then returns only that, and its input is its only argument: its states are zeros.
    """
    given = bound(step, ("input", "hx"))
    x = given.get("input")
    if not lstm.bidirectional or not isinstance(x, Value) or len(x.shape) != 3:
        return False
    users = graph.users()
    zeros = _zeros(graph, given.get("hx"))
    taker = _taker(graph, step, lstm, users)
    hidden, rows = lstm.hidden_size, x.shape[0] * x.shape[1]
    inputs = 2 * hidden if lstm.num_layers > 1 else lstm.input_size
    if zeros is None or taker is None or 4 * hidden * (hidden + inputs) * rows < _WORTH:
        return False
    step.args, step.kwargs, step.outputs = (x,), {}, taker.outputs
    gone = {taker, *(s for s in zeros if set(users[s.outputs]) == {step})}
    graph.steps = [s for s in graph.steps if s not in gone]
    # States of a fixed size would raise for another batch.
    graph.unsure |= not graph.exact and any(not list(s.reads()) for s in zeros)
    return True


def _zeros(graph: Graph, hx: Any) -> list[Step] | None:
    """The steps that make the states of zeros ``hx``, none if there are no states; None where they are others."""
    if hx is None:
        return []
    states = list(hx) if isinstance(hx, tuple | list) else []
    made = [s for s in graph.steps if s.kind == "call" and not s.writes and s.outputs in states and _is_zeros(s)]
    written = {v.storage for s in graph.steps for v in s.writes}
    if len(states) != 2 or {s.outputs for s in made} != set(states) or any(v.storage in written for v in states):
        return None
    return made


def _is_zeros(step: Step) -> bool:
    return is_torchs(step.function, "zeros", "new_zeros", "zeros_like") and "out" not in step.kwargs


def _taker(graph: Graph, step: Step, lstm: Any, users: dict[Value, list[Step | None]]) -> Step | None:
    """The step that takes the last time step of the output of ``step``, if nothing else is read."""
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
    return taker if any(type(index) is type(i) and index == i for i in wanted) else None
