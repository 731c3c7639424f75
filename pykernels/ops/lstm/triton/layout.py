"""Where the Triton ops keep what: the reserve that the forward leaves for the backward, and the steps' first rows.

Rows are (step, sequence) pairs, time first (also where x is batch first): row t * B + b, or packed data's own rows.

The reserve is one vector of x's dtype, as many elements as the native ops' (the fakes in autograd.py):

    cell 0 | cell 1 | ... | outputs of layer 0 | outputs of layer 1 | ...        cell = layer * directions + direction
    cell: gates (rows, 4, H), i f g o after their activations, then c (rows, H)
    outputs (rows, directions * H) of every layer but the last, whose is the op's result

Kernels get the vector and an offset, not a slice of it: in a trace, writing to a slice would copy the whole.
A cell (`lstm_cell`) has the same reserve with one layer, one direction and its B rows.
"""

from __future__ import annotations

import torch
from torch import Tensor

#: Ints between the counters of two groups of programs, which so lie in cache lines of their own.
APART = 32
#: A trace has so many steps one by one, for the compiler to see; more are one call of an op that it cannot see into.
UNROLLED = 16


def reserve_size(rows: int, hidden: int, num_layers: int, directions: int) -> int:
    """Elements of the reserve."""
    return output_offset(num_layers - 1, rows, hidden, num_layers, directions)


def gates_offset(cell: int, rows: int, hidden: int) -> int:
    """Where the gates (rows, 4, H) of a cell (layer * directions + direction) begin."""
    return cell * 5 * rows * hidden


def output_offset(layer: int, rows: int, hidden: int, num_layers: int, directions: int) -> int:
    """Where the outputs (rows, directions * H) of a layer that is not the last begin."""
    return gates_offset(num_layers * directions, rows, hidden) + layer * rows * directions * hidden


def first_rows(batch_sizes: Tensor, rows: int, device: torch.device) -> Tensor:
    """(T + 1,) int32 on ``device``: the first row of each step of packed data, and the end.

    Nobody looks at the values, so a trace needs none; they are kept within x's rows whatever they are.
    """
    ends = batch_sizes.cumsum(0).clamp(0, rows)
    return torch.nn.functional.pad(ends, (1, 0)).to(torch.int32).to(device, non_blocking=True)
