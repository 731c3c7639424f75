"""Layers that several networks are made of."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

#: A class of activations, or None.
Act = Callable[[], nn.Module] | None


class ConvNormAct(nn.Sequential):
    """Convolution, batch norm, activation; the image's size is kept but for the stride."""

    def __init__(
        self, c: int, k: int, kernel: int = 3, stride: int = 1, groups: int = 1, act: Act = nn.ReLU, dilation: int = 1
    ) -> None:
        padding = dilation * (kernel - 1) // 2
        conv = nn.Conv2d(c, k, kernel, stride, padding, dilation, groups, bias=False)
        super().__init__(conv, nn.BatchNorm2d(k), *([act()] if act else []))


class SqueezeExcite(nn.Module):
    """Scales each channel by a gate that is made of all channels' means."""

    def __init__(
        self, c: int, squeezed: int, gate: type[nn.Module] = nn.Sigmoid, act: type[nn.Module] = nn.ReLU
    ) -> None:
        super().__init__()
        self.fc1, self.act = nn.Conv2d(c, squeezed, 1), act()
        self.fc2, self.gate = nn.Conv2d(squeezed, c, 1), gate()

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> the same shape."""
        return x * self.gate(self.fc2(self.act(self.fc1(F.adaptive_avg_pool2d(x, 1)))))


class BasicBlock(nn.Module):
    """ResNet's block of two 3x3 convolutions."""

    def __init__(self, c: int, k: int, stride: int = 1, dilation: int = 1) -> None:
        super().__init__()
        self.a, self.b = ConvNormAct(c, k, 3, stride, dilation=dilation), ConvNormAct(k, k, act=None, dilation=dilation)
        self.down = ConvNormAct(c, k, 1, stride, act=None) if stride != 1 or c != k else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, K, H / stride, W / stride)."""
        return F.relu(self.b(self.a(x)) + self.down(x))


class Classifier(nn.Module):
    """A body, the mean over the image, dropout and 1000 classes."""

    def __init__(self, c: int, *body: nn.Module) -> None:
        super().__init__()
        self.body, self.head = nn.Sequential(*body), nn.Linear(c, 1000)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, 1000)."""
        return self.head(F.dropout(self.body(x).mean((2, 3)), 0.2, self.training))
