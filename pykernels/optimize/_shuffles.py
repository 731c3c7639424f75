"""Shuffles of channels and pixels on the CPU as our steps; a channel shuffle includes the concatenation before it.

torch has ``channel_shuffle``; ShuffleNet writes it out: a view, a transposition, a copy and a view.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

from pykernels.ops import _dispatch
from pykernels.ops.shuffle.arguments import CHANNELS, DOWN, UP, ShuffleCall
from pykernels.ops.shuffle.op import CHANNEL_SHUFFLE
from pykernels.optimize._calls import OurCall, takes_image
from pykernels.optimize._graph import Graph, Step, Value, bound, is_torchs, may_move
from pykernels.optimize._norms import is_join

_VIEWS = ("view", "reshape", "unflatten", "flatten")
_NAMES = {
    "channel_shuffle": (CHANNELS, "groups"),
    "pixel_shuffle": (UP, "upscale_factor"),
    "pixel_unshuffle": (DOWN, "downscale_factor"),
}


class Shuffle(OurCall):
    """Such a step, of a list of images: one, or one for each group of channels."""

    def __init__(self, call: ShuffleCall) -> None:
        name = next(name for name, (kind, _) in _NAMES.items() if kind == call.kind)
        super().__init__(name, name, "shuffle", torch.tensor(call))
        self._call = call
        self._run = torch.ops.pykernels.shuffle_bound.default

    def __call__(self, x: Sequence[Tensor]) -> Tensor:
        """In new memory."""
        return self._run(x, self.numbers)

    def in_trace(self, x: Sequence[Tensor]) -> Tensor:  # type: ignore[override]
        """The same by `pykernels.ops`'s op."""
        return torch.ops.pykernels.shuffle(x[0] if len(x) == 1 else torch.cat(list(x), 1), *self._call)


def use_our_shuffles(graph: Graph) -> None:
    """Puts our steps in the place of torch's, before formats are settled."""
    if not _dispatch.has_native(CHANNEL_SHUFFLE, torch.device("cpu")):
        return
    users = graph.users()
    producers = {v: s for s in graph.steps for v in s.results()}
    at = {s: i for i, s in enumerate(graph.steps)}
    gone: set[Step] = set()
    for step in graph.steps:
        found = _of_torchs(step) or (_written_out(step, users) if graph.exact else None)
        if found is None:
            continue
        call, x, chain = found
        last = chain[-1] if chain else step
        if not call.is_ours() or not may_move(graph, at, [step, *chain], last, [x]):
            continue
        pieces = _pieces(call, x, producers, users)
        joined = [producers[x]] if len(pieces) > 1 else []
        if joined and not may_move(graph, at, [*joined, step, *chain], last, pieces):
            pieces, joined = [x], []
        sources = dict.fromkeys(s.where for s in (*joined, step, *chain) if s.where)
        gone |= {*joined, step, *chain} - {last}
        last.function, last.args, last.kwargs = Shuffle(call), (pieces,), {}
        last.note, last.sources = ("cat+" if joined else "") + last.function.__name__, tuple(sources)
    graph.steps = [s for s in graph.steps if s not in gone]


_Found = tuple[ShuffleCall, Value, list[Step]]


def _of_torchs(step: Step) -> _Found | None:
    """torch's own function."""
    name = getattr(step.function, "__name__", "")
    if step.kind != "call" or step.writes or name not in _NAMES or not is_torchs(step.function, name):
        return None
    kind, argument = _NAMES[name]
    given = bound(step, ("input", argument))
    x, k = given.get("input"), given.get(argument)
    if type(k) is not int or k < 1 or set(given) != {"input", argument} or not takes_image(CHANNEL_SHUFFLE, step, x):
        return None
    assert isinstance(x, Value)
    return (ShuffleCall(kind, k), x, []) if step.outputs.layout == x.layout else None


def _written_out(step: Step, users: dict[Value, list[Step | None]]) -> _Found | None:
    """A view of channels as (groups, channels of a group), these two exchanged, and a view of an image again.

    Only for a recording that holds for its own sizes, because a view says nothing about others.
    """
    x = step.args[0] if step.args else None
    if (
        not _is_view(step)
        or not isinstance(x, Value)
        or len(x.shape) != 4
        or x.dtype not in CHANNEL_SHUFFLE.takes("cpu")
    ):
        return None
    n, c, h, w = x.shape
    y = step.outputs
    if len(y.shape) != 5 or y.shape[:1] != (n,) or y.shape[3:] != (h, w) or prod(y.shape[1:3]) != c:
        return None
    if x.device.type != "cpu" or x.dynamic:
        return None
    chain: list[Step] = []
    value: Value = y
    for turns in (True, False):
        after = _only_user(value, users)
        if after is None or not (_exchanges(after) if turns else True):
            return None
        if not turns and is_torchs(after.function, "contiguous", "clone") and len(after.args) == 1 and not after.kwargs:
            chain.append(after)
            after = _only_user(after.outputs, users)
        if after is None or (not turns and not _is_view(after)):
            return None
        chain.append(after)
        value = after.outputs
    return (ShuffleCall(CHANNELS, y.shape[1]), x, chain) if value.shape == x.shape and _fits(value) else None


def _fits(y: Value) -> bool:
    return y.layout == "contiguous" and not y.dynamic


def _is_view(step: Step) -> bool:
    named = step.kind == "call" and not step.writes and is_torchs(step.function, *_VIEWS)
    return named and isinstance(step.outputs, Value)


def _exchanges(step: Step) -> bool:
    """Whether it exchanges dimensions 1 and 2 of five."""
    if step.kwargs or not step.args:
        return False
    rest = step.args[1:]
    if is_torchs(step.function, "transpose", "swapaxes", "swapdims"):
        return len(rest) == 2 and all(type(d) is int for d in rest) and {d % 5 for d in rest} == {1, 2}
    if is_torchs(step.function, "permute"):
        dims = rest[0] if len(rest) == 1 and isinstance(rest[0], tuple | list) else rest
        return all(type(d) is int for d in dims) and [d % 5 for d in dims] == [0, 2, 1, 3, 4]
    return False


def _only_user(value: Any, users: dict[Value, list[Step | None]]) -> Step | None:
    found = users.get(value, []) if isinstance(value, Value) else []
    step = found[0] if len(found) == 1 else None
    fits = step is not None and step.kind == "call" and not step.writes and isinstance(step.outputs, Value)
    return step if fits else None


def _pieces(
    call: ShuffleCall, x: Value, producers: dict[Value, Step], users: dict[Value, list[Step | None]]
) -> list[Value]:
    """What is joined to ``x`` by a step that nothing else needs, if that is a tensor for each group; else ``x``."""
    cat = producers.get(x)
    if call.kind != CHANNELS or cat is None or len(users.get(x, ())) != 1 or not is_join(cat):
        return [x]
    given = list(cat.args[0])
    fits = len(given) == call.k and all(
        isinstance(v, Value) and v.dtype is x.dtype and v.shape == given[0].shape and not v.dynamic for v in given
    )
    return given if fits and len(given[0].shape) == 4 else [x]
