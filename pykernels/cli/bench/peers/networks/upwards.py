"""Transposed convolutions, which make large maps of small ones: U-Net, and the generator of a DCGAN."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import ConvNormAct


class UNet(nn.Module):
    """Segmentation (Ronneberger et al. 2015), with batch norm: (N, 3, H, W) -> (N, 1, H, W)."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        widths = [width << i for i in range(5)]
        before = [3, *widths]
        self.down = nn.ModuleList(_double(c, k) for c, k in zip(before, widths, strict=False))
        self.grow = nn.ModuleList(nn.ConvTranspose2d(2 * k, k, 2, 2) for k in widths[-2::-1])
        self.up = nn.ModuleList(_double(2 * k, k) for k in widths[-2::-1])
        self.head = nn.Conv2d(width, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """As the class says."""
        maps: list[Tensor] = []
        for down in self.down:
            x = down(F.max_pool2d(x, 2) if maps else x)
            maps.append(x)
        for grow, up, beside in zip(self.grow, self.up, maps[-2::-1], strict=True):
            x = up(torch.cat((grow(x), beside), 1))
        return torch.sigmoid(self.head(x))


def _double(c: int, k: int) -> nn.Module:
    return nn.Sequential(ConvNormAct(c, k), ConvNormAct(k, k))


class Generator(nn.Sequential):
    """Pictures from noise (Radford et al. 2015): (N, 100, 1, 1) -> (N, 3, 64, 64)."""

    def __init__(self) -> None:
        layers: list[nn.Module] = []
        c = 100
        for k in (512, 256, 128, 64):
            where = (2, 1) if layers else (1, 0)
            layers += [nn.ConvTranspose2d(c, k, 4, *where, bias=False), nn.BatchNorm2d(k), nn.ReLU(inplace=True)]
            c = k
        super().__init__(*layers, nn.ConvTranspose2d(c, 3, 4, 2, 1, bias=False), nn.Tanh())
