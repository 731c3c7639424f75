"""The phases of a transposed convolution, packed and run into one result, for the module and for programs on the CPU.

`pykernels.ops.conv_bn_act.transposed` says what a phase is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pykernels.nn._packed import slots_of
from pykernels.nn.conv import ConvPack, Epilogue
from pykernels.ops.conv_bn_act.arguments import Geometry
from pykernels.ops.conv_bn_act.transposed import Phase, as_filters

_EMPTY = torch.empty(0, dtype=torch.uint8)

Packed = list[tuple[Phase, Phase, ConvPack]]


def pack_phases(
    weight: Tensor,
    vectors: Sequence[Tensor | None],
    rows: Sequence[Phase],
    columns: Sequence[Phase],
    groups: int,
    epilogue: Epilogue,
) -> Packed:
    """A pack for each phase of ``weight`` (C, K / groups, R, S).

    ``vectors`` are the bias, the batch norm's four and maybe slopes.
    """
    filters = as_filters(weight, groups)
    packed = []
    for row in rows:
        for column in columns:
            part = filters[:, :, row.taps][:, :, :, column.taps]
            around = (row.before, column.before, row.after, column.after)
            padding: Any = tuple(max(p, 0) for p in around)
            geometry = Geometry((1, 1), padding, (row.dilation, column.dilation), groups)
            pack = ConvPack(slots_of([part, *vectors]), weight.dtype, geometry, epilogue)
            packed.append((row, column, pack))
    return packed


def fit(rows: Sequence[Phase], columns: Sequence[Phase], size: Sequence[int]) -> bool:
    """Whether each phase reads something of an image of ``size`` (H, W)."""
    axes = zip(size, (rows, columns), strict=True)
    return all(p.reads(n) > 0 and n + p.more >= 0 for n, some in axes for p in some)


class BoundTransposed:
    """A transposed convolution to ``k`` channels, bound for inputs of one shape; x and the residual are missing."""

    def __init__(self, packed: Packed, stride: tuple[int, int], k: int, x: torch.Size, channels_last: bool) -> None:
        self.channels_last, self.stride = channels_last, stride
        n, c, height, width = x
        down, across = {row.first: row for row, *_ in packed}, {column.first: column for _, column, _ in packed}
        self.shape = (n, k, _extent(height, down.values()), _extent(width, across.values()))
        #: Where a phase begins, what it doesn't read of x at each side, and what is bound.
        self.parts: list[tuple[int, int, tuple[int, ...] | None, Tensor]] = []
        for row, column, made in packed:
            if height + row.more < 1 or width + column.more < 1:
                continue
            cut = tuple(max(-p, 0) for p in (row.before, row.after, column.before, column.after))
            tensor = made.bound_for(torch.Size((n, c, row.reads(height), column.reads(width))))
            self.parts.append((row.first, column.first, cut if any(cut) else None, tensor))

    def calls(self, x: Tensor, y: Tensor, residual: Tensor | None) -> list[tuple[Tensor, Tensor, Tensor, Any]]:
        """The arguments of each phase: its part of x, what is bound, its parts of y and the residual."""
        vertical, horizontal = self.stride
        height, width = x.shape[2:]
        found = []
        for a, b, cut, made in self.parts:
            read = x
            if cut is not None:
                top, bottom, left, right = cut
                read = x[:, :, top : height - bottom, left : width - right]
            added = None if residual is None else residual[:, :, a::vertical, b::horizontal]
            found.append((read, made, y[:, :, a::vertical, b::horizontal], added))
        return found

    def run(self, x: Tensor, residual: Tensor | None, channels_last: bool) -> Tensor:
        """The result, in new memory of that format, or of the one that it is for."""
        last = self.channels_last or channels_last
        form = torch.channels_last if last else torch.contiguous_format
        y = torch.empty(self.shape, dtype=x.dtype, memory_format=form)
        self.write(x, residual, y, _EMPTY)
        return y

    def write(self, x: Tensor, residual: Tensor | None, y: Tensor, workspace: Tensor) -> None:
        """Writes the result to ``y``."""
        op = torch.ops.pykernels.conv_bn_act_bound_out.default
        if len(self.parts) > 1:
            x = x.contiguous(memory_format=torch.channels_last)  # or each phase would turn it
        for read, made, part, added in self.calls(x, y, residual):
            op(read, made, added, part, workspace)


def _extent(size: int, some: Any) -> int:
    """How many rows the phases have together."""
    return sum(max(size + p.more, 0) for p in some)
