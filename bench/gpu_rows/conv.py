"""Layers of ResNet-50: conv + folded BN + ReLU (+ residual) against cuDNN; and training with the batch's statistics."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import pykernels as pk
from gpu_rows.measure import TRITON, Bench, Rows
from pykernels.ops.conv_bn_act import fold_batch_norm


@dataclass(frozen=True)
class Layer:
    """(N, C, HW, HW) through K filters of R x R."""

    n: int
    c: int
    hw: int
    k: int
    r: int
    stride: int = 1
    residual: bool = False
    groups: int = 1
    dtype: torch.dtype = torch.float16

    @property
    def pad(self) -> int:
        """Half the filter."""
        return self.r // 2

    @property
    def title(self) -> str:
        """As in the table."""
        rest = f" s{self.stride}" * (self.stride > 1) + " +res" * self.residual + f" g{self.groups}" * (self.groups > 1)
        return f"{str(self.dtype)[6:]} N={self.n} {self.c}x{self.hw}x{self.hw} -> {self.k} {self.r}x{self.r}{rest}"


def layers(bench: Bench) -> list[Layer]:
    """At batch 64 and 1."""
    if bench.dry:
        return [Layer(2, 8, 6, 16, 3, residual=True, dtype=torch.bfloat16)]
    shapes: list[tuple[Any, ...]] = [
        (56, 64, 64, 3), (28, 128, 128, 3), (14, 256, 256, 3), (7, 512, 512, 3), (56, 64, 256, 1, 1, True),
        (14, 1024, 256, 1), (56, 128, 128, 3, 2), (224, 3, 64, 7, 2),
    ]  # fmt: skip
    found = [Layer(n, c, hw, *rest) for n in (64, 1) for hw, c, *rest in shapes]
    return [*found, Layer(64, 256, 14, 256, 3, dtype=torch.bfloat16), Layer(64, 256, 28, 256, 3, groups=256)]


def rows(bench: Bench) -> Rows:
    """A row a layer."""
    for layer in layers(bench):
        yield f"conv+bn+relu {layer.title}", partial(row, bench, layer)


def block_of(bench: Bench, layer: Layer) -> pk.nn.ConvBNAct2d:
    """With statistics that are not those of a fresh batch norm; weights that keep the output's size."""
    block = pk.nn.ConvBNAct2d(
        layer.c, layer.k, layer.r, layer.stride, layer.pad, groups=layer.groups, device=bench.device
    )
    assert block.bn is not None
    with torch.no_grad():
        block.bn.running_mean.uniform_(-0.2, 0.2)  # type: ignore[union-attr]
        block.bn.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]
        block.bn.weight.uniform_(0.5, 1.5)
        block.bn.bias.uniform_(-0.5, 0.5)
    return block.to(memory_format=torch.channels_last)


def row(bench: Bench, layer: Layer, peers: dict[str, Callable[..., Any]] | None = None) -> dict[str, Any]:
    """The block on packed weights; cuDNN on the folded weight, with its own fused ReLU and without."""
    dtype, out = layer.dtype, (layer.hw + 2 * layer.pad - layer.r) // layer.stride + 1
    block = block_of(bench, layer).eval()
    scale, shift = fold_batch_norm(
        None, block.bn.running_mean, block.bn.running_var, block.bn.weight, block.bn.bias, block.bn.eps
    )
    weight64 = block.conv.weight.detach().to(dtype).double()
    folded = (block.conv.weight.detach() * scale.detach()[:, None, None, None]).to(dtype)
    folded = folded.contiguous(memory_format=torch.channels_last)
    bias = shift.detach().to(dtype)
    block = block.to(dtype)
    moved = dtype.itemsize * (
        layer.n * (layer.c * layer.hw**2 + (1 + layer.residual) * layer.k * out**2) + folded.numel()
    )

    def image(*shape: int) -> torch.Tensor:
        return bench.randn(*shape, dtype=dtype).contiguous(memory_format=torch.channels_last)

    sets = []
    for _ in range(bench.copies(moved)):
        x = image(layer.n, layer.c, layer.hw, layer.hw)
        sets.append((x, image(layer.n, layer.k, out, out) if layer.residual else None))

    def ours(backend: str, x: torch.Tensor, residual: torch.Tensor | None) -> torch.Tensor:
        with torch.no_grad(), pk.backend(backend):
            return block(x, residual)

    def eager(x: torch.Tensor, residual: torch.Tensor | None) -> torch.Tensor:
        y = F.conv2d(x, folded, bias, layer.stride, layer.pad, 1, layer.groups)
        return (y if residual is None else y.add_(residual)).relu_()

    def fused(x: torch.Tensor, residual: torch.Tensor | None) -> torch.Tensor:
        geometry = [layer.stride] * 2, [layer.pad] * 2, [1, 1], layer.groups
        if residual is None:
            return torch.cudnn_convolution_relu(x, folded, bias, *geometry)
        return torch.cudnn_convolution_add_relu(x, folded, residual, 1.0, bias, *geometry)

    def expected() -> torch.Tensor:
        x, residual = sets[0]
        z = F.conv2d(x[:4].double(), weight64, None, layer.stride, layer.pad, 1, layer.groups)
        z = z * scale.double()[:, None, None] + shift.double()[:, None, None]
        return torch.relu(z if residual is None else z + residual[:4].double())

    others: dict[str, Callable[..., Any]] = {"cuDNN": eager, "cuDNN, its own ReLU": fused}
    others |= {name: partial(peer, folded, bias, layer) for name, peer in (peers or {}).items()}
    with torch.no_grad():
        return bench.row(
            bench.own(ours, sets) | {name: [partial(f, *s) for s in sets] for name, f in others.items()},
            expected,
            {torch.float16: 3e-3, torch.bfloat16: 2e-2}[dtype],
            pick=lambda y: y[:4],
            operations=2 * layer.n * layer.k * out**2 * layer.c // layer.groups * layer.r**2,
            moved=moved,
            rate="bf16" if dtype == torch.bfloat16 else "fp16",
        )


def training_rows(bench: Bench) -> Rows:
    """Forward and backward under AMP, the statistics those of the batch."""
    shapes = [Layer(2, 8, 6, 16, 3)] if bench.dry else [
        Layer(64, 64, 56, 64, 3), Layer(64, 256, 56, 64, 1), Layer(64, 256, 14, 256, 3), Layer(64, 512, 7, 2048, 1),
    ]  # fmt: skip
    for layer in shapes:
        yield f"training conv+bn+relu fwd+bwd {layer.title}", partial(training_row, bench, layer)


def training_row(bench: Bench, layer: Layer) -> dict[str, Any]:
    """The same children run by the block, and one after the other."""
    block = block_of(bench, layer).train()
    assert block.bn is not None
    block.bn.momentum = 0.0  # the running statistics stay what they are
    plain = nn.Sequential(block.conv, block.bn, nn.ReLU())
    x = bench.randn(layer.n, layer.c, layer.hw, layer.hw).contiguous(memory_format=torch.channels_last)
    out = (layer.hw + 2 * layer.pad - layer.r) // layer.stride + 1
    up = bench.randn(layer.n, layer.k, out, out).contiguous(memory_format=torch.channels_last)
    dtype = torch.bfloat16 if bench.dry else torch.float16

    def step(backend: str, module: nn.Module) -> torch.Tensor:
        leaf = x.detach().requires_grad_()
        with pk.backend(backend), torch.autocast(bench.device, dtype, cache_enabled=False):
            y = module(leaf)
        return torch.autograd.grad(y, [leaf, *module.parameters()], up.to(y.dtype))[1]

    def expected() -> torch.Tensor:
        weight = block.conv.weight.detach().double().requires_grad_()
        norm = block.bn
        z = F.conv2d(x.double(), weight, None, layer.stride, layer.pad)
        y = F.batch_norm(z, None, None, norm.weight.double(), norm.bias.double(), True, 0.0, norm.eps)
        return torch.autograd.grad(torch.relu(y), weight, up.double())[0]

    moved = 2 * layer.n * (5 * layer.k * out**2 + 3 * layer.c * layer.hw**2)
    tolerance = 0.15 if bench.dry else 3e-2
    return bench.row(
        {
            "ours": [partial(step, "auto", block)], TRITON: [partial(step, bench.triton, block)],
            "torch (cuDNN), AMP": [partial(step, "auto", plain)],
        }, expected, tolerance,
        operations=6 * layer.n * layer.k * out**2 * layer.c * layer.r**2, moved=moved,
    )  # fmt: skip
