"""The specs of `int8_lstm_cell` and `int8_lstm`: lstm's samples with rounded weights.

float32 results are exact, except with ``weight_only``, where they are lstm's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pykernels.ops._spec import OpSpec, Sample
from pykernels.ops.int8_lstm import int8_lstm, int8_lstm_cell, reference
from pykernels.ops.int8_lstm.op import (
    INT8_LSTM,
    INT8_LSTM_CELL,
    INT8_LSTM_CELL_WEIGHT_ONLY,
    INT8_LSTM_WEIGHT_ONLY,
)
from pykernels.ops.int8_matmul.reference import quantize_int8_reference
from pykernels.ops.lstm.spec import LSTM_CELL_SPEC, LSTM_SPEC


def quantized(weights: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Weights in nn.LSTM's flat order with the matrices in int8, and the scales of their rows."""
    flat, scales = [], []
    for w in weights:
        if w.dim() == 2:
            w, scale, _ = quantize_int8_reference(w, axis=0)
            scales.append(scale.float())
        flat.append(w)
    return flat, scales


def _rounded(sample: Sample, cell: bool, weight_only: bool = False) -> Sample:
    def make(dtype: torch.dtype, generator: torch.Generator) -> tuple[tuple[Any, ...], dict[str, Any]]:
        (x, states, *rest), named = sample.make(dtype, generator)
        named |= {"weight_only": True} if weight_only else {}
        if cell:
            weights, scales = quantized(rest)
            return (x, states, *weights[:2], *scales, *weights[2:]), named
        return (x, states, *quantized(rest[0])), named

    # A quarter of the bytes is moved. There is no sum to round, or lstm's with a factor more in each term.
    reduction = sample.reduction + 1 if weight_only else 1
    return replace(sample, make=make, reduction=reduction, bytes=sample.bytes // 4)


#: float32 results are the reference's to the bit; bfloat16 ones are rounded once. tests/ops/int8_lstm compares bits.
GROWTH = 0.5

INT8_LSTM_CELL_SPEC = OpSpec(
    op=INT8_LSTM_CELL,
    function=int8_lstm_cell,
    reference=reference.int8_lstm_cell,
    samples=tuple(_rounded(sample, True) for sample in LSTM_CELL_SPEC.samples),
    growth=GROWTH,
    has_int8=True,
)

INT8_LSTM_SPEC = OpSpec(
    op=INT8_LSTM,
    function=int8_lstm,
    reference=reference.int8_lstm,
    samples=tuple(_rounded(sample, False) for sample in LSTM_SPEC.samples),
    growth=GROWTH,
    has_int8=True,
)

INT8_LSTM_CELL_WEIGHT_ONLY_SPEC = replace(
    INT8_LSTM_CELL_SPEC,
    op=INT8_LSTM_CELL_WEIGHT_ONLY,
    samples=tuple(_rounded(sample, True, True) for sample in LSTM_CELL_SPEC.samples),
    growth=LSTM_CELL_SPEC.growth,
)

INT8_LSTM_WEIGHT_ONLY_SPEC = replace(
    INT8_LSTM_SPEC,
    op=INT8_LSTM_WEIGHT_ONLY,
    samples=tuple(_rounded(sample, False, True) for sample in LSTM_SPEC.samples),
    growth=LSTM_SPEC.growth,
)

#: The specs whose float32 results are exact; and all.
EXACT: tuple[OpSpec, ...] = (INT8_LSTM_CELL_SPEC, INT8_LSTM_SPEC)
SPECS: tuple[OpSpec, ...] = (*EXACT, INT8_LSTM_CELL_WEIGHT_ONLY_SPEC, INT8_LSTM_WEIGHT_ONLY_SPEC)
