"""Takes writing out of a recording where nobody can tell: ``x += y`` gives a new value, as ``x + y`` does.

Patterns see one form then, whatever the model wrote. What is left unfused writes in place again at the end.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from pykernels.optimize._graph import Graph, Step, Value, is_torchs, strides_in, values_in
from pykernels.optimize._kinds import PASSES, PASSES_BY_LAYOUT, WITH_FLAG, name_of
from pykernels.optimize._simplify import is_fresh

_METHODS: dict[str, Callable[..., Any]] = {
    "add_": torch.add, "__iadd__": torch.add, "mul_": torch.mul, "__imul__": torch.mul, "relu_": torch.relu,
    "sigmoid_": torch.sigmoid, "tanh_": torch.tanh, "hardtanh_": F.hardtanh, "leaky_relu_": F.leaky_relu,
    "elu_": F.elu, "clamp_": torch.clamp, "clamp_min_": torch.clamp_min, "clamp_max_": torch.clamp_max,
}  # fmt: skip
#: Give their own argument for some sizes, and a copy for others.
_MAY_ALIAS = PASSES | PASSES_BY_LAYOUT | {"view", "type", "expand", "permute"}


def without_writes(graph: Graph) -> None:
    """Rewrites the steps of ``graph`` that write to a value whose old content nothing can see any more."""
    at = {s: i for i, s in enumerate(graph.steps)}
    sharing: dict[int, list[Value]] = {}
    for v in (*graph.inputs, *dict.fromkeys(v for s in graph.steps for v in (*s.reads(), *s.results()))):
        sharing.setdefault(v.storage, []).append(v)
    producers = {v: s for s in graph.steps for v in s.results()}
    users = graph.users()
    rewritten: set[Step] = set()

    def is_ours(x: Value, step: Step) -> bool:
        """Does nothing but ``step`` and what comes of it see the memory of ``x`` from here on?"""
        if any(v.kind != "step" for v in sharing[x.storage]):
            return False
        first = min((producers[v] for v in sharing[x.storage]), key=lambda s: at[s])
        if first not in rewritten and not is_fresh(first):
            return False
        for v in sharing[x.storage]:
            if at[producers[v]] >= at[step]:
                continue
            for user in users.get(v, []):
                if user is None or at[user] > at[step]:
                    return False
                kept = user.kind != "call" or name_of(user.function) in _MAY_ALIAS
                if user is not step and kept:
                    return False
        return True

    for step in graph.steps:
        x, out = step.args[0] if step.args else None, step.outputs
        if not isinstance(x, Value) or not isinstance(out, Value) or step.writes != (x,):
            continue
        pure = _pure(step)
        if pure is None or not _keeps_strides(step, x, out) or not is_ours(x, step):
            continue
        later = [v for v in sharing[x.storage] if at[producers[v]] >= at[step]]
        sharing[x.storage] = [v for v in sharing[x.storage] if v not in later]
        storage = -2 - out.index  # nobody else's
        for v in later:
            v.storage = storage
        sharing[storage] = later
        step.function, step.args, step.kwargs = pure
        step.writes = ()
        rewritten.add(step)


def _pure(step: Step) -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]] | None:
    """The call that gives in a new tensor what ``step`` writes into its first argument."""
    name = name_of(step.function)
    if not is_torchs(step.function, name) or "out" in step.kwargs:
        return None
    if name in _METHODS:
        # elu_ has scales too, which F.elu hasn't.
        return None if name == "elu_" and len(step.args) > 2 else (_METHODS[name], step.args, step.kwargs)
    if name not in WITH_FLAG or step.function is not getattr(F, name):
        return None
    return step.function, step.args[: WITH_FLAG[name]], {k: v for k, v in step.kwargs.items() if k != "inplace"}


def _keeps_strides(step: Step, x: Value, out: Value) -> bool:
    """Does the result have the dtype, shape and strides of ``x`` when it is new as well?"""
    others = list(values_in((step.args[1:], step.kwargs)))
    alike = all((v.shape, v.dtype, v.layout) == (x.shape, x.dtype, x.layout) for v in others)
    same = (out.shape, out.dtype, out.stride) == (x.shape, x.dtype, x.stride)
    # Also those of a batch of one, which say nothing, but are a slice's for other batches.
    return same and alike and x.layout != "other" and x.stride == strides_in(x.layout, x.shape)
