"""From a recording to a program: dead steps out, constants folded, patterns fused, memory formats settled."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from pykernels.optimize._graph import Graph, Step, Value, values_in
from pykernels.optimize._kinds import PURE, name_of
from pykernels.optimize._layout import settle
from pykernels.optimize._patterns import Fuser, can_fuse, is_torchs, use_our_lstms
from pykernels.optimize._program import Program
from pykernels.optimize._record import Recorder


def compiled(graph: Graph, recorder: Recorder, store: dict[Hashable, Any]) -> Program:
    """The program of ``graph``."""
    _drop_dead(graph)
    folded: list[Step] = []
    if can_fuse():
        folded = _fold(graph)
        constants = {v for s in graph.steps for v in s.reads() if v.kind == "source"}
        constants |= {v for s in folded for v in s.results()}
        Fuser(graph, constants).fuse()
        use_our_lstms(graph, store)
        settle(graph)
    return Program(graph, folded, recorder.watch, store)


def is_pure(step: Step) -> bool:
    """Does it give the same for the same arguments, and do nothing else?"""
    if step.kind != "call" or step.writes or "out" in step.kwargs:
        return False
    name = name_of(step.function)
    if name == "batch_norm":
        statistics = list(step.args[1:3]) + [step.kwargs.get(k) for k in ("running_mean", "running_var")]
        return is_torchs(step.function, name) and not any(isinstance(v, Value) for v in statistics)
    return name in PURE


def _drop_dead(graph: Graph) -> None:
    needed = set(values_in(graph.result))
    kept: list[Step] = []
    for step in reversed(graph.steps):
        if is_pure(step) and not any(v in needed for v in step.results()):
            continue
        needed |= set(step.reads())
        kept.append(step)
    graph.steps = kept[::-1]


def _fold(graph: Graph) -> list[Step]:
    """Takes out the steps that depend on sources alone."""
    written = {v.storage for s in graph.steps for v in s.writes}
    open_ended = {v for s in graph.steps if s.kind != "call" for v in s.reads()} | set(values_in(graph.result))
    constants: set[Value] = set()
    folded: list[Step] = []
    for step in graph.steps:
        reads = list(step.reads())
        fixed = reads and all(v.kind == "source" or v in constants for v in reads) and is_pure(step)
        results = step.results()
        if fixed and not any(v.storage in written or v in open_ended for v in results):
            folded.append(step)
            constants |= set(results)
    graph.steps = [s for s in graph.steps if s not in set(folded)]
    return folded
