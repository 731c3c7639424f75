"""What int8 costs: the signal-to-noise ratio of each layer, the error of the results, and the layers that cost most."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from pykernels.ops._arguments import fail
from pykernels.optimize._face import family_of
from pykernels.optimize._graph import Value
from pykernels.quantize._calibrate import OP, Call, Watcher, run_all
from pykernels.quantize._plan import Plan

if TYPE_CHECKING:
    from pykernels.optimize._program import Program

Score = Callable[[nn.Module], float]


class _LayerWatcher(Watcher):
    """Sees what layers give, and knows which call of which program that was."""

    def __init__(self) -> None:
        super().__init__()
        self._calls: dict[str, int] = {}

    def run(self, program: Program, tensors: list[Tensor]) -> Any:
        """The result of ``program`` for ``tensors``."""
        name = program.graph.rewritten.name
        self._calls[name] = self._calls.get(name, 0) + 1
        return super().run(program, tensors)

    def see(self, program: Program, v: Value, t: Tensor) -> None:
        """Hands on what is of a layer, in float."""
        graph = program.graph.rewritten
        at = graph.position(v)
        if at is None or at not in graph.of_layers or not (t.is_floating_point() or v in graph.int8):
            return
        key = graph.name, at, self._calls[graph.name]
        self.take(key, graph.in_float(v, t) if v in graph.int8 else t.float())

    def take(self, key: tuple[str, int, int], t: Tensor) -> None:
        """``t`` is the result of a layer in a call: the graph, the value and which call of it."""
        raise NotImplementedError


class _Keeper(_LayerWatcher):
    def __init__(self) -> None:
        super().__init__()
        self.kept: dict[tuple[str, int, int], Tensor] = {}

    def take(self, key: tuple[str, int, int], t: Tensor) -> None:
        self.kept[key] = t.clone()


class _Comparer(_LayerWatcher):
    def __init__(self, kept: dict[tuple[str, int, int], Tensor]) -> None:
        super().__init__()
        self.kept = kept
        self.energies: dict[tuple[str, int], tuple[float, float]] = {}

    def take(self, key: tuple[str, int, int], t: Tensor) -> None:
        exact = self.kept.get(key)
        if exact is None or exact.shape != t.shape:
            return
        signal, noise = self.energies.get(key[:2], (0.0, 0.0))
        signal += float(exact.double().square().sum())
        self.energies[key[:2]] = signal, noise + float((t.double() - exact.double()).square().sum())


@contextmanager
def in_float(twin: nn.Module, plan: Plan) -> Iterator[None]:
    """Runs ``twin`` in float."""
    family = family_of(twin)
    plan.is_on = False
    family.forget()
    try:
        yield
    finally:
        plan.is_on = True
        family.forget()


def measure(twin: nn.Module, plan: Plan, calls: Sequence[Call]) -> None:
    """Sets the signal-to-noise ratios of ``plan``, in dB, of each layer with all before it in int8 too."""
    keeper = _Keeper()
    with in_float(twin, plan):
        run_all(twin, calls, keeper, lambda _: None)
    comparer = _Comparer(keeper.kept)
    run_all(twin, calls, comparer, lambda _: None)
    for (name, at), (signal, noise) in comparer.energies.items():
        ratio = math.inf if noise == 0 else -math.inf if signal == 0 else 10 * math.log10(signal / noise)
        plan.ratios.setdefault(name, {})[at] = ratio


def results_of(twin: nn.Module, calls: Sequence[Call]) -> list[Tensor]:
    """The float tensors that ``twin`` returns for ``calls``."""
    found: list[Tensor] = []

    def take(result: Any) -> None:
        leaves = [t for t in tree_leaves(result) if isinstance(t, Tensor) and t.is_floating_point()]
        found.extend(t.detach().clone() for t in leaves)

    run_all(twin, calls, None, take)
    return found


def relative_error(got: Sequence[Tensor], exact: Sequence[Tensor]) -> float:
    """The L2 norm of the difference over that of ``exact``, over all of them."""
    noise = sum(float((a.double() - b.double()).square().sum()) for a, b in zip(got, exact, strict=True))
    signal = sum(float(b.double().square().sum()) for b in exact)
    return math.sqrt(noise / signal) if signal else math.inf if noise else 0.0


def keep_within(twin: nn.Module, plan: Plan, calls: Sequence[Call], budget: float, score: Score | None) -> None:
    """Keeps in float the fewest layers, those that cost most first, with which the loss is at most ``budget``.

    The loss is the relative error of the results or, with a ``score``, what that loses. Which layers cost most is told
    by the results' error with one of them alone in int8.
    """
    family = family_of(twin)
    with in_float(twin, plan):
        exact = results_of(twin, calls)
        best = 0.0 if score is None else _scored(score, twin)

    def loss(kept: Sequence[str]) -> float:
        plan.kept = tuple(kept)
        family.forget()
        if score is not None:
            return best - _scored(score, twin)
        return relative_error(results_of(twin, calls), exact)

    if loss(()) <= budget:
        return
    results_of(twin, calls)  # a score may have run copies alone
    names = layer_names(twin)
    costs: dict[str, float] = {}
    for name in names:
        plan.only = name
        family.forget()
        costs[name] = relative_error(results_of(twin, calls), exact)
    plan.only = None
    order = sorted(names, key=lambda name: -costs[name])
    low, high = 0, len(order)  # with none kept it does not hold; with all kept there is nothing to lose
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if loss(order[:middle]) <= budget else (middle, high)
    plan.kept = tuple(order[:high])
    family.forget()


def _scored(score: Score, twin: nn.Module) -> float:
    with torch.no_grad():
        found = score(twin)
    try:
        return float(found)
    except (TypeError, ValueError):
        fail(TypeError, OP, "score", "a function from a model to a number", type(found).__name__)


def layer_names(twin: nn.Module) -> list[str]:
    """The layers in int8, by the modules that they belong to."""
    graphs = [p.graph.rewritten for p in family_of(twin).programs() if p.graph.rewritten is not None]
    return list(dict.fromkeys(step.where for graph in graphs for step in (*graph.made, *graph.recurrent)))
