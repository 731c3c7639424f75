"""Makes a program of a recording: drops dead steps, folds constants, fuses patterns, settles memory formats."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from pykernels.optimize._branches import merge_branches
from pykernels.optimize._conv1d import as_images, conv1d_of
from pykernels.optimize._functional import without_writes
from pykernels.optimize._graph import Graph, Step, Value, values_in
from pykernels.optimize._group_norms import group_norm_of
from pykernels.optimize._layer_norms import pixels_of, rows_as_images, use_our_layer_norms
from pykernels.optimize._layout import settle
from pykernels.optimize._linear import linear_of
from pykernels.optimize._norms import norm_of
from pykernels.optimize._ops import pack_lstms
from pykernels.optimize._patterns import Fuser, can_fuse, conv_of, use_our_lstms
from pykernels.optimize._pools import use_our_pools
from pykernels.optimize._program import Program
from pykernels.optimize._record import Recorder
from pykernels.optimize._resizes import use_our_resizes
from pykernels.optimize._shuffles import use_our_shuffles
from pykernels.optimize._simplify import drop_dead, drop_duplicates, is_pure, reuse_memory
from pykernels.optimize._squeeze import use_our_squeeze
from pykernels.optimize._transposed import transposed_of


def compiled(graph: Graph, recorder: Recorder, store: dict[Hashable, Any], plan: Any = None) -> Program:
    """The program of ``graph``. ``plan`` is that of a quantised model."""
    if can_fuse():
        pack_lstms(graph)
    graph.unsure = drop_dead(graph)
    without_writes(graph)
    given: Any = plan is None and can_fuse() and _quantized_already(graph)
    drop_duplicates(graph)
    folded: list[Step] = []
    if can_fuse():
        folded = _fold(graph)
        constants = {v for s in graph.steps for v in s.reads() if v.kind == "source"}
        constants |= {v for s in folded for v in s.results()}
        folded += merge_branches(graph, constants)
        folded += use_our_squeeze(graph, constants)
        rows_as_images(graph, constants)
        fuser = Fuser(
            graph, constants, (conv_of, pixels_of, conv1d_of, transposed_of, linear_of, norm_of, group_norm_of)
        )
        fuser.fuse()
        folded += fuser.folded
        drop_dead(graph)
        if plan is not None:
            plan.rewrite(graph, recorder.module, store, folded)
        if given:
            folded = given.follow(graph, folded)
        use_our_shuffles(graph)
        use_our_lstms(graph, store)
        as_images(graph)
        settle(graph)
        if plan is not None:
            plan.settled(graph)
        if given:
            given.settled(graph)
        reuse_memory(graph)
        use_our_pools(graph)
        use_our_resizes(graph)
        use_our_layer_norms(graph)
    return Program(graph, folded, recorder.watch, store)


def _quantized_already(graph: Graph) -> Any:
    """What puts int8 steps into ``graph``, if it comes with grids; takes them."""
    from pykernels.quantize import _follow  # which imports this package

    return _follow if _follow.take_grids(graph) else None


def _fold(graph: Graph) -> list[Step]:
    """Takes out the steps that depend only on sources."""
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
