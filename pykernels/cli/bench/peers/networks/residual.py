"""Classifiers of grouped and dense convolutions: RegNetY, ResNeXt, DenseNet."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import Classifier, ConvNormAct, SqueezeExcite


class RegNetBlock(nn.Module):
    """A bottleneck of grouped convolutions with a gate."""

    def __init__(self, c: int, k: int, stride: int, width: int = 16) -> None:
        super().__init__()
        self.a, self.b = ConvNormAct(c, k, 1), ConvNormAct(k, k, 3, stride, k // width)
        self.se, self.c = SqueezeExcite(k, max(1, c // 4)), ConvNormAct(k, k, 1, act=None)
        self.down = ConvNormAct(c, k, 1, stride, act=None) if stride != 1 or c != k else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, K, H / stride, W / stride)."""
        return F.relu(self.c(self.se(self.b(self.a(x)))) + self.down(x))


def regnety_008() -> nn.Module:
    """RegNetY-800MF (Radosavovic et al. 2020)."""
    blocks: list[nn.Module] = [ConvNormAct(3, 32, 3, 2)]
    c = 32
    for k, n in ((64, 1), (128, 3), (320, 8), (768, 2)):
        for i in range(n):
            blocks.append(RegNetBlock(c, k, 2 if i == 0 else 1))
            c = k
    return Classifier(c, *blocks)


class ResNeXtBlock(nn.Module):
    """A bottleneck whose middle is 32 groups."""

    def __init__(self, c: int, width: int, k: int, stride: int) -> None:
        super().__init__()
        self.a, self.b = ConvNormAct(c, width, 1), ConvNormAct(width, width, 3, stride, 32)
        self.c = ConvNormAct(width, k, 1, act=None)
        self.down = ConvNormAct(c, k, 1, stride, act=None) if stride != 1 or c != k else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, K, H / stride, W / stride)."""
        return F.relu(self.c(self.b(self.a(x))) + self.down(x))


def resnext50_32x4d() -> nn.Module:
    """ResNeXt-50 32x4d (Xie et al. 2017)."""
    body: list[nn.Module] = [ConvNormAct(3, 64, 7, 2), nn.MaxPool2d(3, 2, 1)]
    c = 64
    for stage, n in enumerate((3, 4, 6, 3)):
        width = 128 << stage
        for i in range(n):
            body.append(ResNeXtBlock(c, width, 2 * width, 2 if i == 0 and stage else 1))
            c = 2 * width
    return Classifier(c, *body)


class DenseLayer(nn.Module):
    """Batch norm and ReLU before each convolution; takes all maps so far, and makes 32 more."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(c), nn.Conv2d(c, 128, 1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(128), nn.Conv2d(128, 32, 3, padding=1, bias=False)

    def forward(self, features: list[Tensor]) -> Tensor:
        """Maps (N, C_i, H, W) -> (N, 32, H, W)."""
        y = self.conv1(F.relu(self.norm1(torch.cat(features, 1)), inplace=True))
        return self.conv2(F.relu(self.norm2(y), inplace=True))


class DenseBlock(nn.ModuleList):
    """Layers of which each takes the results of all before it."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C + 32 n, H, W)."""
        features = [x]
        for layer in self:
            features.append(layer(features))
        return torch.cat(features, 1)


def densenet121() -> nn.Module:
    """DenseNet-121 (Huang et al. 2017)."""
    body: list[nn.Module] = [ConvNormAct(3, 64, 7, 2), nn.MaxPool2d(3, 2, 1)]
    c = 64
    for n in (6, 12, 24, 16):
        body.append(DenseBlock(DenseLayer(c + 32 * i) for i in range(n)))
        c += 32 * n
        if n != 16:
            body += [nn.BatchNorm2d(c), nn.ReLU(inplace=True), nn.Conv2d(c, c // 2, 1, bias=False), nn.AvgPool2d(2)]
            c //= 2
    return Classifier(c, *body, nn.BatchNorm2d(c), nn.ReLU(inplace=True))
