"""Small models for the tests, with batch norms that have seen something."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def worn(model: nn.Module) -> nn.Module:
    """``model`` in evaluation mode, with statistics and weights as after training."""
    torch.manual_seed(5)
    with torch.no_grad():
        for m in model.modules():
            if isinstance(m, nn.modules.batchnorm._BatchNorm):
                assert m.running_mean is not None
                assert m.running_var is not None
                m.running_mean.normal_(0, 0.2)
                m.running_var.uniform_(0.5, 1.5)
                m.weight.uniform_(0.5, 1.5)
                m.bias.normal_(0, 0.2)
    return model.eval()


class Residual(nn.Module):
    """A stem, a pool, a block with a sum, one that joins branches, and a classifier."""

    def __init__(self, act: str = "relu") -> None:
        super().__init__()
        self.act = getattr(F, act)
        self.stem, self.norm = nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16)
        self.a, self.norm_a = nn.Conv2d(16, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        self.b, self.norm_b = nn.Conv2d(16, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        self.left, self.right = nn.Conv2d(16, 8, 1), nn.Conv2d(16, 24, 3, 1, 1, groups=2)
        self.wide = nn.Conv2d(32, 32, 3, 1, 1, groups=32)
        self.last = nn.Conv2d(32, 20, 1)
        self.fc = nn.Linear(20, 7)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) to (N, 7)."""
        x = F.max_pool2d(self.act(self.norm(self.stem(x))), 2)
        y = self.act(self.norm_a(self.a(x)))
        x = self.act(self.norm_b(self.b(y)) + x)
        x = torch.cat([self.act(self.left(x)), self.act(self.right(x))], 1)
        x = self.act(self.last(self.act(self.wide(x))))
        return self.fc(x.mean((2, 3)))


def residual(act: str = "relu") -> nn.Module:
    """A `Residual` that has seen something."""
    torch.manual_seed(0)
    return worn(Residual(act))


def batches(n: int = 3, size: int = 24, batch: int = 2) -> list[Tensor]:
    """Images."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(batch, 3, size, size, generator=generator) for _ in range(n)]


def error(got: Tensor, exact: Tensor) -> float:
    """Relative, by the L2 norm."""
    return float((got - exact).norm() / exact.norm())


def rounding(layers: int) -> float:
    """The relative error that int8 may bring to so many layers in a row.

    A grid of 255 steps covers a range of eight deviations, which some thousands of normal numbers have. What is rounded
    is off by up to half a step, evenly: a step / sqrt(12) in the mean square. The inputs and the weights of all layers
    and the result are rounded; the errors are independent, and layers pass relative errors on as they are.
    """
    return 8 / 255 / math.sqrt(12) * math.sqrt(2 * layers + 1)


def neighbours(layers: int) -> float:
    """The relative error where so many layers compute the same in another order, and then round to int8.

    Sums of some hundred float32 numbers are off by some 2^-22 of them, and of the range of 255 steps. As many numbers
    lie so near to the middle between two steps that they may be rounded to either, and are off by a step then.
    """
    return 8 / 255 * math.sqrt(255 * 2**-22 * layers)


def run(model: nn.Module, *args: Tensor) -> Tensor:
    """The result of the third call: by then a program runs."""
    with torch.inference_mode():
        for _ in range(2):
            model(*args)
        result: Tensor = model(*args)
    return result
