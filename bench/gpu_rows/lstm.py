"""LSTM sequences against nn.LSTM, which is cuDNN: forward on packed weights, and forward + backward."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import pykernels as pk
from gpu_rows.measure import Bench, Rows


@dataclass(frozen=True)
class Case:
    """(T, B, I) through L layers of width H in D directions."""

    dtype: torch.dtype
    t: int
    b: int
    i: int
    h: int
    layers: int = 1
    d: int = 1
    packed: bool = False
    backward: bool = False

    @property
    def title(self) -> str:
        """As in the table."""
        parts = [f"lstm {str(self.dtype)[6:]} B={self.b} T={self.t} H={self.h}"]
        parts += [f"L={self.layers}"] * (self.layers > 1) + ["both ways"] * (self.d == 2) + ["packed"] * self.packed
        return " ".join(parts) + (" fwd+bwd" if self.backward else " fwd")


def cases(bench: Bench) -> list[Case]:
    """Those of the issue first."""
    f16, bf16 = torch.float16, torch.bfloat16
    if bench.dry:
        return [Case(bf16, 5, 3, 8, 8, 2, 2, packed=True), Case(torch.float32, 4, 2, 8, 8, backward=True)]
    return [
        Case(f16, 1024, 16, 768, 768),
        Case(f16, 1024, 16, 768, 768, backward=True),
        Case(bf16, 512, 1, 512, 512, 2, 2),
        Case(bf16, 512, 8, 512, 512, 2, 2, packed=True),
        Case(f16, 128, 1, 512, 512, 2),
        Case(f16, 128, 64, 512, 512, 2),
        Case(torch.float32, 256, 16, 512, 512),
        Case(bf16, 256, 64, 1024, 1024, backward=True),
    ]


def rows(bench: Bench) -> Rows:
    """A row a case."""
    for case in cases(bench):
        yield case.title, partial(row, bench, case)


def row(bench: Bench, case: Case) -> dict[str, Any]:
    """nn.LSTM and ours with the same weights, against nn.LSTM in float64."""
    theirs = nn.LSTM(case.i, case.h, case.layers, bidirectional=case.d == 2).to(bench.device)
    oracle = nn.LSTM(case.i, case.h, case.layers, bidirectional=case.d == 2).to(bench.device).double()
    theirs = theirs.to(case.dtype)
    oracle.load_state_dict(theirs.state_dict())
    ours = pk.nn.LSTM.from_torch(theirs)
    theirs.flatten_parameters()
    rows_ = case.t * case.b
    copies = bench.copies(case.dtype.itemsize * rows_ * (case.i + case.h * case.d)) if not case.backward else 1
    inputs = [_input(bench, case) for _ in range(copies)]
    ups = bench.randn(case.t, case.b, case.h * case.d, dtype=case.dtype)

    def run(module: nn.Module, x: Any, up: torch.Tensor) -> torch.Tensor:
        if not case.backward:
            with torch.no_grad():
                return _data(module(x)[0])
        leaf = x.detach().requires_grad_()
        output = module(leaf)[0]
        return torch.autograd.grad(output, [leaf, *module.parameters()], up)[0]

    def call(backend: str, module: nn.Module, x: Any) -> torch.Tensor:
        with pk.backend(backend):
            return run(module, x, ups)

    for module in (theirs, ours):
        module.train(case.backward)
    widths = [case.i] + [case.h * case.d] * (case.layers - 1)
    weights = case.d * sum(4 * case.h * (w + case.h) for w in widths)
    passes = 3 if case.backward else 1
    size = case.dtype.itemsize
    return bench.row(
        bench.own(call, [(ours, x) for x in inputs])
        | {"nn.LSTM (cuDNN)": [partial(call, "auto", theirs, x) for x in inputs]},
        lambda: run(oracle, inputs[0].to(torch.float64), ups.double()),
        {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}[case.dtype],
        operations=2 * passes * rows_ * weights,
        moved=size * passes * (weights + rows_ * (case.i + case.h * case.d)),
        rate="bf16" if case.dtype == torch.bfloat16 else "fp16",
        seconds=3.0,
    )


def _input(bench: Bench, case: Case) -> Any:
    x = bench.randn(case.t, case.b, case.i, dtype=case.dtype)
    if not case.packed:
        return x
    lengths = torch.linspace(case.t, max(1, case.t // 4), case.b).long()
    return pack_padded_sequence(x, lengths)


def _data(output: torch.Tensor | PackedSequence) -> torch.Tensor:
    return output.data if isinstance(output, PackedSequence) else output
