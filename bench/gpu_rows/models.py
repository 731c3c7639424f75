"""Whole models in a CUDA graph: pk.optimize's against plain PyTorch in the same dtype, and under AMP."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import nn

import pykernels as pk
from gpu_rows.measure import TRITON, Bench, Rows
from pykernels.models import reference_twin
from pykernels.ops import _dispatch


def subjects(bench: Bench) -> Iterator[tuple[str, Callable[[], nn.Module], Callable[[], torch.Tensor]]]:
    """Title, model, input."""

    def images(n: int, size: int) -> Callable[[], torch.Tensor]:
        return lambda: bench.randn(n, 3, size, size).contiguous(memory_format=torch.channels_last)

    def tokens(n: int, t: int, vocabulary: int) -> Callable[[], torch.Tensor]:
        return lambda: torch.randint(vocabulary, (n, t), device=bench.device)

    if bench.dry:
        small = partial(pk.models.ResNet, pk.models.BasicBlock, (1, 1, 1, 1), 10, "cifar")
        yield "resnet", small, images(2, 32)
        yield "lstm lm", lambda: pk.models.LSTMLanguageModel(20, 8, 8, 2), tokens(2, 4, 20)
        return
    for n in (1, 64):
        yield f"ResNet-50 batch {n}", pk.models.resnet50, images(n, 224)
    for n in (1, 32):
        yield f"LSTM-LM batch {n}", lambda: pk.models.LSTMLanguageModel(10000, 256, 512, 2), tokens(n, 64, 10000)
    yield (
        "CNN-LSTM batch 1",
        lambda: pk.models.CNNLSTM(10, 64 * 20, 256, 2),
        lambda: bench.randn(1, 1, 400, 80),
    )


def rows(bench: Bench) -> Rows:
    """A row a model."""
    for title, make, inputs in subjects(bench):
        yield f"{title} {str(bench.half)[6:]}", partial(row, bench, make, inputs)


def row(
    bench: Bench,
    make: Callable[[], nn.Module],
    inputs: Callable[[], torch.Tensor],
    peers: dict[str, Callable[[nn.Module], Any]] | None = None,
) -> dict[str, Any]:
    """Ours are the model itself and its optimised twin; the oracle is the twin in float64."""
    torch.manual_seed(1)
    model = make().to(bench.device).eval()
    twin = reference_twin(model).eval()
    x = inputs()
    few = x[:2]
    with torch.no_grad():
        expected = _first(reference_twin(model).double().eval()(few.double() if few.is_floating_point() else few))
    own = model.to(bench.half)
    if x.dim() == 4:
        own, twin = own.to(memory_format=torch.channels_last), twin.to(memory_format=torch.channels_last)
    half = reference_twin(own).eval()
    optimised = pk.optimize(half)
    narrow = x.to(bench.half) if x.is_floating_point() else x

    def run(backend: str, module: nn.Module) -> torch.Tensor:
        with pk.backend(backend):
            return _first(module(narrow))

    def amp(module: nn.Module) -> torch.Tensor:
        with torch.autocast(bench.device, bench.half, cache_enabled=False):
            return _first(module(x))

    contenders = {
        "ours": [partial(run, "auto", own)],
        TRITON: [partial(run, bench.triton, own)],
        "cuDNN": [lambda: _first(half(narrow))],
        "cuDNN, AMP": [partial(amp, twin)],
    }
    contenders |= {name: [partial(peer(half), narrow)] for name, peer in (peers or {}).items()}
    with torch.no_grad():
        found = bench.row(contenders, lambda: expected, 3e-2, pick=lambda y: _first(y)[:2], seconds=3.0)
        found["pk.optimize us"] = bench.time([partial(run, "auto", optimised)])
    if not bench.dry and _dispatch._told:  # "auto" is silent but for its log
        found["problem"] = f"not ours alone: {'; '.join(sorted(_dispatch._told))}"
    return found


def _first(y: Any) -> torch.Tensor:
    return y[0] if isinstance(y, tuple) else y
