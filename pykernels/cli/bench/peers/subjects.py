"""Rows as plain PyTorch modules with their inputs: the same numbers in every process, by seed."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from . import networks
from .rows import Row

SEED = 20261122
#: A module, and one batch of inputs.
Subject = tuple[nn.Module, tuple[torch.Tensor, ...]]


def build(row: Row) -> Subject:
    """The subject in eval mode, float32, and one batch of inputs."""
    module, inputs = fresh(row)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
            _wear_in(part)
    return module.eval().requires_grad_(False), inputs


def fresh(row: Row) -> Subject:
    """The same as it is initialised, in training mode."""
    torch.manual_seed(SEED)
    return _BUILDERS[row.kind](row.batch, **row.sizes)


def _wear_in(norm: nn.BatchNorm1d | nn.BatchNorm2d) -> None:
    """Statistics and weights as after training: folding a fresh BatchNorm would prove nothing."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    with torch.no_grad():
        norm.running_mean.normal_(0.0, 0.1)
        norm.running_var.uniform_(0.5, 1.5)
        norm.weight.uniform_(0.5, 1.5)
        norm.bias.normal_(0.0, 0.1)


def _plain(name: str, *args: Any, **kwargs: Any) -> nn.Module:
    """The plain-PyTorch twin of a model of ours."""
    model = getattr(importlib.import_module("pykernels.models"), name)(*args, **kwargs)
    return importlib.import_module("pykernels.models.reference").reference_twin(model)


def _resnet(batch: int, depth: int, stem: str, image: int) -> Subject:
    model = _plain(f"resnet{depth}", num_classes=10 if stem == "cifar" else 1000, stem=stem)
    return model, (torch.randn(batch, 3, image, image),)


def _network(batch: int, structure: str) -> Subject:
    make, shape = networks.NETWORKS[structure]
    return make(), (torch.randn(batch, *shape[1:]),)


def _lstmlm(batch: int, vocabulary: int, embedding: int, hidden: int, layers: int, tokens: int) -> Subject:
    model = _plain("LSTMLanguageModel", vocabulary, embedding, hidden, layers)
    return model, (torch.randint(0, vocabulary, (batch, tokens)),)


def _cnnlstm(batch: int, frames: int, features: int, hidden: int, layers: int, classes: int) -> Subject:
    model = _plain("CNNLSTM", classes, 64 * (features // 4), hidden, layers)
    return model, (torch.randn(batch, 1, frames, features),)


def _conv(batch: int, c: int, k: int, r: int, stride: int, side: int) -> Subject:
    layer = nn.Conv2d(c, k, r, stride=stride, padding=r // 2, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(k), nn.ReLU()), (torch.randn(batch, c, side, side),)


class Sequence(nn.Module):
    """A one-layer LSTM over whole sequences, input as wide as the state."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(hidden, hidden, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, T, H) -> (B, T, H)."""
        return self.lstm(x)[0]


class Step(nn.Module):
    """One LSTM cell step."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(hidden, hidden)

    def forward(self, x: torch.Tensor, h: torch.Tensor, c: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Three (B, H) -> h, c."""
        return self.cell(x, (h, c))


def _sequence(batch: int, hidden: int, steps: int) -> Subject:
    return Sequence(hidden), (torch.randn(batch, steps, hidden),)


def _cell(batch: int, hidden: int, steps: int) -> Subject:
    return Step(hidden), tuple(torch.randn(batch, hidden) for _ in range(3))


class Product(nn.Module):
    """int8 (M, K) times constant int8 (K, N), exact in int32."""

    def __init__(self, n: int, k: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.randint(-128, 128, (k, n), dtype=torch.int8))
        self.weight: torch.Tensor

    def forward(self, a: torch.Tensor) -> torch.Tensor:
        """(M, K) int8 -> (M, N) int32, or float64 in float64: sums stay below 2^53, so that is exact too."""
        return a @ self.weight if a.is_floating_point() else torch._int_mm(a, self.weight)


def _product(batch: int, m: int, n: int, k: int) -> Subject:
    return Product(n, k), (torch.randint(-128, 128, (m, k), dtype=torch.int8),)


def _linear(batch: int, m: int, n: int, k: int) -> Subject:
    return nn.Sequential(nn.Linear(k, n)), (torch.randn(m, k),)


_BUILDERS: dict[str, Callable[..., Any]] = {
    "resnet": _resnet,
    "network": _network,
    "lstmlm": _lstmlm,
    "cnnlstm": _cnnlstm,
    "conv": _conv,
    "lstm": _sequence,
    "cell": _cell,
    "gemm": _product,
    "linear": _linear,
}
