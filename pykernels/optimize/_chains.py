"""Convolutions and squeeze-and-excitations that stand in a row, as one call.

A call costs as much as a small convolution: the code of Python and torch has left the cache since the last one. So they
are handed to the kernels together, as many as there are in a row. Where one that widens, a depthwise or grouped and a
1x1 one read each other's results, and nobody else does, the kernels go through all three by bands of rows
(csrc/cpu/conv_bn_act/chain.cpp). Of int8 there are chains of convolutions alone.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from itertools import groupby, pairwise
from typing import Any

import torch

from pykernels.optimize._fused import FusedConv
from pykernels.optimize._graph import Graph, Step, Value, values_in
from pykernels.optimize._squeeze import is_squeeze


def chains(steps: Sequence[Step], placed: Container[Any]) -> Iterator[list[Step]]:
    """The longest runs, of at least two, of steps that go into one call and of which some are convolutions.

    The results of these are ``placed``; a squeeze-and-excitation's may lie in x's own memory.
    """
    for op, run in groupby(steps, lambda step: _chain_op(step, placed)):
        found = list(run)
        if op is not None and len(found) > 1 and not all(map(is_squeeze, found)):
            yield found


def _chain_op(step: Step, placed: Container[Any]) -> Any:
    """What takes it with those before and after it, if anything does."""
    if is_squeeze(step):
        return torch.ops.pykernels.conv_bn_act_chain_out.default if step in placed or step.writes else None
    return chain_op(step) if step in placed else None


def chain_op(step: Step) -> Any:
    """What takes it with others of its kind, if it is a convolution of images."""
    ops = torch.ops.pykernels
    if is_plain(step):
        return ops.conv_bn_act_chain_out.default
    return ops.int8_conv2d_chain_out.default if _writes_by(step, ops.int8_conv2d_bound_out.default) else None


def is_plain(step: Step) -> bool:
    """Is it a convolution of images, which `conv_bn_act_chain_out` takes?"""
    return _writes_by(step, torch.ops.pykernels.conv_bn_act_bound_out.default)


def _writes_by(step: Step, op: Any) -> bool:
    conv = step.function
    return isinstance(conv, FusedConv) and conv.rank == 4 and conv.write_op() is op


def kept(graph: Graph, chain: Sequence[Step]) -> list[int]:
    """For each of its steps, 0 if nobody but the next one reads what it gives, and that once; else 1."""
    counts: dict[Value, int] = {}
    for v in [v for step in graph.steps for v in step.reads()] + list(values_in(graph.result)):
        counts[v] = counts.get(v, 0) + 1
    following = [*(_follows(a, b) for a, b in pairwise(chain)), False]
    return [int(counts.get(step.outputs, 0) != 1 or not f) for step, f in zip(chain, following, strict=True)]


def needed(steps: Sequence[Step]) -> Iterator[tuple[Value, int]]:
    """Yields each value whose memory a band may still use, and the last step that may use it."""
    for i, (first, second) in enumerate(pairwise(steps)):
        if not (is_plain(first) and is_plain(second) and _follows(first, second) and _is_grouped(second)):
            continue
        third = steps[i + 2] if i + 2 < len(steps) else None
        joins = third is not None and is_plain(third) and _follows(second, third)
        yield first.args[0], i + 1 + joins
        yield first.outputs, i + 1 + joins


def _follows(first: Step, second: Step) -> bool:
    return bool(second.args) and second.args[0] is first.outputs


def _is_grouped(step: Step) -> bool:
    groups: int = step.function.geometry().groups
    return groups > 1
