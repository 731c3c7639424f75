"""Convolutions that follow each other directly, as one call.

A call costs as much as a small convolution, so they are handed to the kernels together, as many as there are in a row.
Where one that widens, a depthwise or grouped and a 1x1 one read each other's results, and nobody else does, the kernels go through
all three by bands of rows (csrc/cpu/conv_bn_act/chain.cpp).
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from itertools import pairwise
from typing import Any

import torch

from pykernels.optimize._fused import FusedConv
from pykernels.optimize._graph import Graph, Step, Value, values_in


def chains(steps: Sequence[Step], placed: Container[Any]) -> Iterator[list[Step]]:
    """The longest runs, of at least two, of convolutions in ``placed`` that each read what the one before gives."""
    run: list[Step] = []
    for step in steps:
        takes = step in placed and is_plain(step)
        if run and not (takes and _follows(run[-1], step)):
            if len(run) > 1:
                yield run
            run = []
        if takes:
            run.append(step)
    if len(run) > 1:
        yield run


def is_plain(step: Step) -> bool:
    """Is it a convolution of images, which `conv_bn_act_chain_out` takes?"""
    conv, op = step.function, torch.ops.pykernels.conv_bn_act_bound_out.default
    return isinstance(conv, FusedConv) and conv.rank == 4 and conv.write_op() is op


def kept(graph: Graph, chain: Sequence[Step]) -> list[int]:
    """For each of its steps, 1 if anybody but the next one reads what it gives, or the next one twice; else 0."""
    counts: dict[Value, int] = {}
    for v in [v for step in graph.steps for v in step.reads()] + list(values_in(graph.result)):
        counts[v] = counts.get(v, 0) + 1
    return [int(counts.get(step.outputs, 0) != 1) for step in chain]


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
