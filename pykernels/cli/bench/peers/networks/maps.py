"""Maps and lines: HRNet, DeepLabV3+, and CRNN, which reads text."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import BasicBlock, ConvNormAct


class HighResolution(nn.Module):
    """A stage of HRNet: branches of ever lower resolution, and each the sum of all afterwards."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        n = range(len(widths))
        self.branches = nn.ModuleList(nn.Sequential(BasicBlock(c, c), BasicBlock(c, c)) for c in widths)
        self.fuse = nn.ModuleList(nn.ModuleList(self._from(widths, j, i) for j in n) for i in n)

    def _from(self, widths: Sequence[int], j: int, i: int) -> nn.Module:
        if j == i:
            return nn.Identity()
        if j > i:
            up = nn.Upsample(scale_factor=2 ** (j - i))
            return nn.Sequential(ConvNormAct(widths[j], widths[i], 1, act=None), up)
        steps = [ConvNormAct(widths[j], widths[j], 3, 2) for _ in range(i - j - 1)]
        return nn.Sequential(*steps, ConvNormAct(widths[j], widths[i], 3, 2, act=None))

    def forward(self, xs: list[Tensor]) -> list[Tensor]:
        """Maps of ever lower resolution -> the same shapes."""
        ys = [branch(x) for branch, x in zip(self.branches, xs, strict=True)]
        out = []
        for row in self.fuse:
            assert isinstance(row, nn.ModuleList)
            y = row[0](ys[0])
            for part, other in zip(row[1:], ys[1:], strict=True):
                y = y + part(other)
            out.append(F.relu(y))
        return out


class HRNet(nn.Module):
    """A small HRNet for poses (Sun et al. 2019): (N, 3, H, W) -> (N, 17, H / 4, W / 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(ConvNormAct(3, 64, 3, 2), ConvNormAct(64, 64, 3, 2), BasicBlock(64, 64))
        self.first = nn.ModuleList([ConvNormAct(64, 16), ConvNormAct(64, 32, 3, 2)])
        self.stage2, self.to3 = HighResolution((16, 32)), ConvNormAct(32, 64, 3, 2)
        self.stage3, self.to4 = HighResolution((16, 32, 64)), ConvNormAct(64, 128, 3, 2)
        self.stage4, self.head = HighResolution((16, 32, 64, 128)), nn.Conv2d(16, 17, 1)

    def forward(self, x: Tensor) -> Tensor:
        """As the class says."""
        x = self.stem(x)
        xs = self.stage2([first(x) for first in self.first])
        xs = self.stage3([*xs, self.to3(xs[-1])])
        return self.head(self.stage4([*xs, self.to4(xs[-1])])[0])


def _separable(c: int, k: int, dilation: int = 1) -> nn.Module:
    return nn.Sequential(nn.Conv2d(c, c, 3, 1, dilation, dilation, c, bias=False), ConvNormAct(c, k, 1))


class DeepLabV3Plus(nn.Module):
    """DeepLabV3+ (Chen et al. 2018) on a small ResNet: (N, 3, H, W) -> (N, classes, H, W)."""

    def __init__(self, classes: int = 21) -> None:
        super().__init__()
        self.low = nn.Sequential(
            ConvNormAct(3, 64, 7, 2), nn.MaxPool2d(3, 2, 1), BasicBlock(64, 64), BasicBlock(64, 64)
        )
        self.high = nn.Sequential(
            BasicBlock(64, 128, 2), BasicBlock(128, 128), BasicBlock(128, 256, 2), BasicBlock(256, 256),
            BasicBlock(256, 512, 1, 2), BasicBlock(512, 512, 1, 2),
        )  # fmt: skip
        self.aspp = nn.ModuleList([ConvNormAct(512, 256, 1), *(_separable(512, 256, d) for d in (12, 24, 36))])
        self.pool, self.project = ConvNormAct(512, 256, 1), _separable(5 * 256, 256)
        self.skip, self.last = ConvNormAct(64, 48, 1), _separable(304, 256)
        self.head = nn.Conv2d(256, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """As the class says."""
        low = self.low(x)
        y = self.high(low)
        pooled = F.interpolate(self.pool(y.mean((2, 3), keepdim=True)), size=y.shape[2:], mode="bilinear")
        y = self.project(torch.cat([*(part(y) for part in self.aspp), pooled], 1))
        y = F.interpolate(y, scale_factor=4, mode="bilinear", align_corners=True)
        y = self.head(self.last(torch.cat([y, self.skip(low)], 1)))
        return F.interpolate(y, scale_factor=4, mode="bilinear", align_corners=True)


class CRNN(nn.Module):
    """A reader of lines of text (Shi et al. 2015): (N, 1, 32, W) -> (W / 4 + 1, N, classes)."""

    def __init__(self, classes: int = 37, hidden: int = 256) -> None:
        super().__init__()

        def conv(c: int, k: int, *, norm: bool = False, kernel: int = 3) -> nn.Module:
            layers = [nn.Conv2d(c, k, kernel, padding=kernel // 2 if kernel == 3 else 0)]
            return nn.Sequential(*layers, *([nn.BatchNorm2d(k)] if norm else []), nn.ReLU(inplace=True))

        def halved() -> nn.Module:
            return nn.MaxPool2d((2, 2), (2, 1), (0, 1))

        self.body = nn.Sequential(
            conv(1, 64), nn.MaxPool2d(2), conv(64, 128), nn.MaxPool2d(2), conv(128, 256, norm=True), conv(256, 256),
            halved(), conv(256, 512, norm=True), conv(512, 512), halved(),
            conv(512, 512, norm=True, kernel=2),
        )  # fmt: skip
        self.rnn = nn.LSTM(512, hidden, 2, bidirectional=True)
        self.head = nn.Linear(2 * hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        """As the class says."""
        return self.head(self.rnn(self.body(x).squeeze(2).permute(2, 0, 1))[0])
