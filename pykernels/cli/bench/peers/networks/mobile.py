"""Networks of depthwise convolutions: MobileNetV2 and V3, EfficientNet, MobileOne."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from .layers import Act, Classifier, ConvNormAct, SqueezeExcite


class InvertedResidual(nn.Module):
    """Widened by a 1x1 convolution, depthwise, gated where ``gate`` is given, narrowed; added to x where it fits."""

    def __init__(
        self, c: int, expanded: int, k: int, kernel: int, stride: int, act: Act, gate: SqueezeExcite | None = None
    ) -> None:
        super().__init__()
        self.adds = stride == 1 and c == k
        self.body = nn.Sequential(
            *([ConvNormAct(c, expanded, 1, act=act)] if expanded != c else []),
            ConvNormAct(expanded, expanded, kernel, stride, expanded, act),
            *([gate] if gate else []),
            ConvNormAct(expanded, k, 1, act=None),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, K, H / stride, W / stride)."""
        return x + self.body(x) if self.adds else self.body(x)


def _stages(rows: Sequence[Sequence[int]], act: Act, squeeze: type[nn.Module] | None = None) -> Classifier:
    """``rows``: expansion, channels, blocks, stride of the first, kernel of each stage; ``squeeze``: its activation."""
    blocks: list[nn.Module] = [ConvNormAct(3, 32, 3, 2, act=act)]
    c = 32
    for t, k, n, s, kernel in rows:
        for i in range(n):
            gate = SqueezeExcite(c * t, c // 4, act=squeeze) if squeeze else None
            blocks.append(InvertedResidual(c, c * t, k, kernel, s if i == 0 else 1, act, gate))
            c = k
    return Classifier(1280, *blocks, ConvNormAct(c, 1280, 1, act=act))


_MOBILENET_V2 = (
    (1, 16, 1, 1, 3), (6, 24, 2, 2, 3), (6, 32, 3, 2, 3), (6, 64, 4, 2, 3), (6, 96, 3, 1, 3), (6, 160, 3, 2, 3),
    (6, 320, 1, 1, 3),
)  # fmt: skip
_EFFICIENTNET = (
    (1, 16, 1, 1, 3), (6, 24, 2, 2, 3), (6, 40, 2, 2, 5), (6, 80, 3, 2, 3), (6, 112, 3, 1, 5), (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
)  # fmt: skip


def mobilenet_v2() -> nn.Module:
    """MobileNetV2 (Sandler et al. 2018)."""
    return _stages(_MOBILENET_V2, nn.ReLU6)


def efficientnet_lite0() -> nn.Module:
    """EfficientNet-lite0: no gates, ReLU6."""
    return _stages(_EFFICIENTNET, nn.ReLU6)


def efficientnet_b0() -> nn.Module:
    """EfficientNet-B0 (Tan and Le 2019)."""
    return _stages(_EFFICIENTNET, nn.SiLU, nn.SiLU)


def mobilenet_v3_large() -> nn.Module:
    """MobileNetV3-large (Howard et al. 2019), with one layer for its head."""
    hs, c = nn.Hardswish, 16
    blocks: list[nn.Module] = [ConvNormAct(3, 16, 3, 2, act=hs)]
    rows: tuple[tuple[int, int, int, int, type[nn.Module], int], ...] = (
        (3, 16, 16, 0, nn.ReLU, 1), (3, 64, 24, 0, nn.ReLU, 2), (3, 72, 24, 0, nn.ReLU, 1), (5, 72, 40, 24, nn.ReLU, 2),
        (5, 120, 40, 32, nn.ReLU, 1), (5, 120, 40, 32, nn.ReLU, 1), (3, 240, 80, 0, hs, 2), (3, 200, 80, 0, hs, 1),
        (3, 184, 80, 0, hs, 1), (3, 184, 80, 0, hs, 1), (3, 480, 112, 120, hs, 1), (3, 672, 112, 168, hs, 1),
        (5, 672, 160, 168, hs, 2), (5, 960, 160, 240, hs, 1), (5, 960, 160, 240, hs, 1),
    )  # fmt: skip
    for kernel, e, k, squeezed, act, s in rows:
        gate = SqueezeExcite(e, squeezed, nn.Hardsigmoid) if squeezed else None
        blocks.append(InvertedResidual(c, e, k, kernel, s, act, gate))
        c = k
    return Classifier(960, *blocks, ConvNormAct(c, 960, 1, act=hs))


class MobileOneBlock(nn.Module):
    """Parallel branches, as they are trained."""

    def __init__(self, c: int, k: int, kernel: int = 3, stride: int = 1, groups: int = 1, branches: int = 4) -> None:
        super().__init__()
        self.identity = nn.BatchNorm2d(c) if c == k and stride == 1 else None
        self.scale = ConvNormAct(c, k, 1, stride, groups, None) if kernel > 1 else None
        self.convs = nn.ModuleList(ConvNormAct(c, k, kernel, stride, groups, None) for _ in range(branches))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, K, H / stride, W / stride)."""
        out: Tensor | int = 0
        if self.scale is not None:
            out = self.scale(x)
        if self.identity is not None:
            out += self.identity(x)
        for conv in self.convs:
            out += conv(x)
        assert isinstance(out, Tensor)
        return F.relu(out)


def mobileone_s0() -> nn.Module:
    """MobileOne-s0 (Vasu et al. 2022), its branches not merged."""
    blocks, c = [MobileOneBlock(3, 48, stride=2)], 48
    for k, n in ((48, 2), (128, 8), (256, 10), (1024, 1)):
        for i in range(n):
            blocks += [MobileOneBlock(c, c, 3, 2 if i == 0 else 1, c), MobileOneBlock(c, k, 1)]
            c = k
    return Classifier(c, *blocks)
