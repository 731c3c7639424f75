"""int8 matmul with dequantisation, bias and ReLU into float16, against torch._int_mm with that epilogue compiled."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

import pykernels as pk
from gpu_rows.measure import Bench, Rows


def shapes(bench: Bench) -> list[tuple[int, int, int]]:
    """(M, N, K)."""
    if bench.dry:
        return [(32, 24, 16)]
    return [(m, n, n) for n in (4096, 8192) for m in (16, 64, 256, 1024, 4096, 8192)]


def rows(bench: Bench) -> Rows:
    """A row a shape."""
    epilogue = bench.compile(_with_epilogue, dynamic=True)
    for m, n, k in shapes(bench):
        title = f"int8 matmul + dequant + bias + relu M={m} N={n} K={k}"
        yield title, partial(row, bench, m, n, k, {"_int_mm + compiled epilogue": epilogue, "_int_mm": _with_epilogue})


def _with_epilogue(
    a: torch.Tensor, b: torch.Tensor, a_scale: torch.Tensor, b_scale: torch.Tensor, bias: torch.Tensor
) -> torch.Tensor:
    sums = torch._int_mm(a, b)
    return torch.relu(sums.float() * a_scale[:, None] * b_scale + bias).half()


def row(bench: Bench, m: int, n: int, k: int, peers: dict[str, Any]) -> dict[str, Any]:
    """Ours, the peers on int8, and float16's product."""
    # torch._int_mm refuses up to 16 rows: there it gets 32, half of them for nothing.
    padded = m if m > 16 else 32
    sets = []
    for _ in range(bench.copies(m * k + n * k)):
        a, weight = bench.int8(padded, k), bench.int8(n, k)
        scales = torch.rand(padded, device=bench.device) * 1e-2, torch.rand(n, device=bench.device) * 1e-2
        sets.append((a, weight.t(), *scales, bench.randn(n)))

    def ours(backend: str, a: Any, b: Any, a_scale: Any, b_scale: Any, bias: Any) -> torch.Tensor:
        return pk.ops.int8_matmul(
            a[:m], b, a_scale=a_scale[:m], b_scale=b_scale, bias=bias, activation="relu", out_dtype=bench.half,
            backend=backend,
        )  # fmt: skip

    narrow = [(a[:m].half(), b.half(), bias.half()) for a, b, _, _, bias in sets]
    contenders = bench.own(ours, sets) | {name: [partial(f, *s) for s in sets] for name, f in peers.items()}

    def expected() -> torch.Tensor:
        a, b, a_scale, b_scale, bias = sets[0]
        sums = a[:m].double() @ b.double()
        return torch.relu(sums * a_scale[:m, None].double() * b_scale.double() + bias.double())

    moved = m * k + n * k + 2 * m * n
    found = bench.row(
        contenders, expected, 8e-3 if bench.half == torch.bfloat16 else 1e-3, pick=lambda y: y[:m],
        operations=2 * m * n * k, moved=moved, rate="int8",
    )  # fmt: skip
    # Not the same numbers, so not a peer: what leaving float16 for int8 gains.
    found["float16 product us"] = bench.time([partial(torch.addmm, bias, a, b) for a, b, bias in narrow])
    return found
