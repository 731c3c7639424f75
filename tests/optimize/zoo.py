"""Networks that people run, in few lines: the structures of the papers and of timm, torchvision and YOLOv5, untrained.

`ZOO` has a function for each and the shape of an image. Batch norm has random statistics, so that a wrong fold shows.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn


class ConvNormAct(nn.Sequential):
    def __init__(self, c, k, kernel=3, stride=1, groups=1, act: Callable | None = nn.ReLU, dilation=1):
        padding = dilation * (kernel - 1) // 2
        conv = nn.Conv2d(c, k, kernel, stride, padding, dilation, groups, bias=False)
        super().__init__(conv, nn.BatchNorm2d(k), *([act()] if act else []))


class SqueezeExcite(nn.Module):
    def __init__(self, c, squeezed, gate=nn.Sigmoid):
        super().__init__()
        self.fc1, self.fc2, self.gate = nn.Conv2d(c, squeezed, 1), nn.Conv2d(squeezed, c, 1), gate()

    def forward(self, x):
        return x * self.gate(self.fc2(F.relu(self.fc1(F.adaptive_avg_pool2d(x, 1)))))


class InvertedResidual(nn.Module):
    def __init__(self, c, expanded, k, kernel, stride, act, squeeze=0):
        super().__init__()
        self.adds = stride == 1 and c == k
        self.body = nn.Sequential(
            *([ConvNormAct(c, expanded, 1, act=act)] if expanded != c else []),
            ConvNormAct(expanded, expanded, kernel, stride, expanded, act),
            *([SqueezeExcite(expanded, squeeze, nn.Hardsigmoid)] if squeeze else []),
            ConvNormAct(expanded, k, 1, act=None),
        )

    def forward(self, x):
        return x + self.body(x) if self.adds else self.body(x)


class Classifier(nn.Module):
    def __init__(self, c, *body):
        super().__init__()
        self.body, self.head = nn.Sequential(*body), nn.Linear(c, 1000)

    def forward(self, x):
        return self.head(F.dropout(self.body(x).mean((2, 3)), 0.2, self.training))


def mobilenet_v2():
    blocks, c = [ConvNormAct(3, 32, 3, 2, act=nn.ReLU6)], 32
    for t, k, n, s in (
        (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1),
    ):  # fmt: skip
        for i in range(n):
            blocks.append(InvertedResidual(c, c * t, k, 3, s if i == 0 else 1, nn.ReLU6))
            c = k
    return Classifier(1280, *blocks, ConvNormAct(c, 1280, 1, act=nn.ReLU6))


def mobilenet_v3_large():
    hs, c = nn.Hardswish, 16
    blocks = [ConvNormAct(3, 16, 3, 2, act=hs)]
    for kernel, e, k, se, act, s in (
        (3, 16, 16, 0, nn.ReLU, 1), (3, 64, 24, 0, nn.ReLU, 2), (3, 72, 24, 0, nn.ReLU, 1), (5, 72, 40, 24, nn.ReLU, 2),
        (5, 120, 40, 32, nn.ReLU, 1), (5, 120, 40, 32, nn.ReLU, 1), (3, 240, 80, 0, hs, 2), (3, 200, 80, 0, hs, 1),
        (3, 184, 80, 0, hs, 1), (3, 184, 80, 0, hs, 1), (3, 480, 112, 120, hs, 1), (3, 672, 112, 168, hs, 1),
        (5, 672, 160, 168, hs, 2), (5, 960, 160, 240, hs, 1), (5, 960, 160, 240, hs, 1),
    ):  # fmt: skip
        blocks.append(InvertedResidual(c, e, k, kernel, s, act, se))
        c = k
    return Classifier(960, *blocks, ConvNormAct(c, 960, 1, act=hs))


def efficientnet_lite0():
    blocks, c = [ConvNormAct(3, 32, 3, 2, act=nn.ReLU6)], 32
    for t, k, n, s, kernel in (
        (1, 16, 1, 1, 3), (6, 24, 2, 2, 3), (6, 40, 2, 2, 5), (6, 80, 3, 2, 3), (6, 112, 3, 1, 5), (6, 192, 4, 2, 5),
        (6, 320, 1, 1, 3),
    ):  # fmt: skip
        for i in range(n):
            blocks.append(InvertedResidual(c, c * t, k, kernel, s if i == 0 else 1, nn.ReLU6))
            c = k
    return Classifier(1280, *blocks, ConvNormAct(c, 1280, 1, act=nn.ReLU6))


class RegNetBlock(nn.Module):
    def __init__(self, c, k, stride, width=16):
        super().__init__()
        self.a, self.b = ConvNormAct(c, k, 1), ConvNormAct(k, k, 3, stride, k // width)
        self.se, self.c = SqueezeExcite(k, max(1, c // 4)), ConvNormAct(k, k, 1, act=None)
        self.down = ConvNormAct(c, k, 1, stride, act=None) if stride != 1 or c != k else nn.Identity()

    def forward(self, x):
        return F.relu(self.c(self.se(self.b(self.a(x)))) + self.down(x))


def regnety_008():
    blocks, c = [ConvNormAct(3, 32, 3, 2)], 32
    for k, n in ((64, 1), (128, 3), (320, 8), (768, 2)):
        for i in range(n):
            blocks.append(RegNetBlock(c, k, 2 if i == 0 else 1))
            c = k
    return Classifier(c, *blocks)


class MobileOneBlock(nn.Module):
    """Parallel branches, as they are trained."""

    def __init__(self, c, k, kernel=3, stride=1, groups=1, branches=4):
        super().__init__()
        self.identity = nn.BatchNorm2d(c) if c == k and stride == 1 else None
        self.scale = ConvNormAct(c, k, 1, stride, groups, None) if kernel > 1 else None
        self.convs = nn.ModuleList(ConvNormAct(c, k, kernel, stride, groups, None) for _ in range(branches))

    def forward(self, x):
        out = 0
        if self.scale is not None:
            out = self.scale(x)
        if self.identity is not None:
            out += self.identity(x)
        for conv in self.convs:
            out += conv(x)
        return F.relu(out)


def mobileone_s0():
    blocks, c = [MobileOneBlock(3, 48, stride=2)], 48
    for k, n in ((48, 2), (128, 8), (256, 10), (1024, 1)):
        for i in range(n):
            blocks += [MobileOneBlock(c, c, 3, 2 if i == 0 else 1, c), MobileOneBlock(c, k, 1)]
            c = k
    return Classifier(c, *blocks)


class DenseLayer(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(c), nn.Conv2d(c, 128, 1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(128), nn.Conv2d(128, 32, 3, padding=1, bias=False)

    def forward(self, features):
        y = self.conv1(F.relu(self.norm1(torch.cat(features, 1)), inplace=True))
        return self.conv2(F.relu(self.norm2(y), inplace=True))


class DenseBlock(nn.ModuleList):
    def forward(self, x):
        features = [x]
        for layer in self:
            features.append(layer(features))
        return torch.cat(features, 1)


def densenet121():
    body, c = [ConvNormAct(3, 64, 7, 2), nn.MaxPool2d(3, 2, 1)], 64
    for n in (6, 12, 24, 16):
        body.append(DenseBlock(DenseLayer(c + 32 * i) for i in range(n)))
        c += 32 * n
        if n != 16:
            body += [nn.BatchNorm2d(c), nn.ReLU(inplace=True), nn.Conv2d(c, c // 2, 1, bias=False), nn.AvgPool2d(2)]
            c //= 2
    return Classifier(c, *body, nn.BatchNorm2d(c), nn.ReLU(inplace=True))


class Bottleneck(nn.Module):
    def __init__(self, c, adds):
        super().__init__()
        self.cv1, self.cv2, self.adds = _yolo(c, c, 1), _yolo(c, c, 3), adds

    def forward(self, x):
        return x + self.cv2(self.cv1(x)) if self.adds else self.cv2(self.cv1(x))


def _yolo(c, k, kernel=1, stride=1):
    return ConvNormAct(c, k, kernel, stride, act=nn.SiLU)


class C3(nn.Module):
    def __init__(self, c, k, n=1, adds=True):
        super().__init__()
        half = k // 2
        self.cv1, self.cv2, self.cv3 = _yolo(c, half), _yolo(c, half), _yolo(2 * half, k)
        self.m = nn.Sequential(*(Bottleneck(half, adds) for _ in range(n)))

    def forward(self, x):
        return self.cv3(torch.cat((self.m(self.cv1(x)), self.cv2(x)), 1))


class Pyramid(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.cv1, self.cv2, self.m = _yolo(c, c // 2), _yolo(c * 2, c), nn.MaxPool2d(5, 1, 2)

    def forward(self, x):
        x = self.cv1(x)
        y1 = self.m(x)
        y2 = self.m(y1)
        return self.cv2(torch.cat((x, y1, y2, self.m(y2)), 1))


class YOLO(nn.Module):
    def __init__(self, classes=80):
        super().__init__()
        self.p3 = nn.Sequential(
            nn.Sequential(nn.Conv2d(3, 16, 6, 2, 2, bias=False), nn.BatchNorm2d(16), nn.SiLU()), _yolo(16, 32, 3, 2),
            C3(32, 32), _yolo(32, 64, 3, 2), C3(64, 64, 2),
        )  # fmt: skip
        self.p4 = nn.Sequential(_yolo(64, 128, 3, 2), C3(128, 128, 3))
        self.p5 = nn.Sequential(_yolo(128, 256, 3, 2), C3(256, 256), Pyramid(256))
        self.l5, self.t4, self.l4, self.o3 = (
            _yolo(256, 128),
            C3(256, 128, 1, False),
            _yolo(128, 64),
            C3(128, 64, 1, False),
        )
        self.d4, self.o4 = _yolo(64, 64, 3, 2), C3(128, 128, 1, False)
        self.d5, self.o5 = _yolo(128, 128, 3, 2), C3(256, 256, 1, False)
        self.heads = nn.ModuleList(nn.Conv2d(c, 3 * (classes + 5), 1) for c in (64, 128, 256))

    def forward(self, x):
        p3 = self.p3(x)
        p4 = self.p4(p3)
        l5 = self.l5(self.p5(p4))
        t4 = self.l4(self.t4(torch.cat((F.interpolate(l5, scale_factor=2.0), p4), 1)))
        o3 = self.o3(torch.cat((F.interpolate(t4, scale_factor=2.0), p3), 1))
        o4 = self.o4(torch.cat((self.d4(o3), t4), 1))
        o5 = self.o5(torch.cat((self.d5(o4), l5), 1))
        out = []
        for y, head in zip((o3, o4, o5), self.heads, strict=True):
            y = head(y)
            n, _, h, w = y.shape
            out.append(y.view(n, 3, -1, h, w).permute(0, 1, 3, 4, 2).sigmoid().reshape(n, 3 * h * w, -1))
        return torch.cat(out, 1)


class BasicBlock(nn.Module):
    def __init__(self, c, k, stride=1, dilation=1):
        super().__init__()
        self.a, self.b = ConvNormAct(c, k, 3, stride, dilation=dilation), ConvNormAct(k, k, act=None, dilation=dilation)
        self.down = ConvNormAct(c, k, 1, stride, act=None) if stride != 1 or c != k else nn.Identity()

    def forward(self, x):
        return F.relu(self.b(self.a(x)) + self.down(x))


class HighResolution(nn.Module):
    """A stage of HRNet: branches of ever lower resolution, and each the sum of all afterwards."""

    def __init__(self, widths):
        super().__init__()
        n = range(len(widths))
        self.branches = nn.ModuleList(nn.Sequential(BasicBlock(c, c), BasicBlock(c, c)) for c in widths)
        self.fuse = nn.ModuleList(nn.ModuleList(self._from(widths, j, i) for j in n) for i in n)

    def _from(self, widths, j, i):
        if j == i:
            return nn.Identity()
        if j > i:
            up = nn.Upsample(scale_factor=2 ** (j - i))
            return nn.Sequential(ConvNormAct(widths[j], widths[i], 1, act=None), up)
        steps = [ConvNormAct(widths[j], widths[j], 3, 2) for _ in range(i - j - 1)]
        return nn.Sequential(*steps, ConvNormAct(widths[j], widths[i], 3, 2, act=None))

    def forward(self, xs):
        ys = [branch(x) for branch, x in zip(self.branches, xs, strict=True)]
        out = []
        for row in self.fuse:
            y = row[0](ys[0])
            for f, other in zip(row[1:], ys[1:], strict=True):
                y = y + f(other)
            out.append(F.relu(y))
        return out


class HRNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(ConvNormAct(3, 64, 3, 2), ConvNormAct(64, 64, 3, 2), BasicBlock(64, 64))
        self.first = nn.ModuleList([ConvNormAct(64, 16), ConvNormAct(64, 32, 3, 2)])
        self.stage2, self.to3 = HighResolution((16, 32)), ConvNormAct(32, 64, 3, 2)
        self.stage3, self.to4 = HighResolution((16, 32, 64)), ConvNormAct(64, 128, 3, 2)
        self.stage4, self.head = HighResolution((16, 32, 64, 128)), nn.Conv2d(16, 17, 1)

    def forward(self, x):
        x = self.stem(x)
        xs = self.stage2([f(x) for f in self.first])
        xs = self.stage3([*xs, self.to3(xs[-1])])
        return self.head(self.stage4([*xs, self.to4(xs[-1])])[0])


def _separable(c, k, dilation=1):
    return nn.Sequential(nn.Conv2d(c, c, 3, 1, dilation, dilation, c, bias=False), ConvNormAct(c, k, 1))


class DeepLabV3Plus(nn.Module):
    def __init__(self, classes=21):
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

    def forward(self, x):
        low = self.low(x)
        y = self.high(low)
        pooled = F.interpolate(self.pool(y.mean((2, 3), keepdim=True)), size=y.shape[2:], mode="bilinear")
        y = self.project(torch.cat([*(f(y) for f in self.aspp), pooled], 1))
        y = F.interpolate(y, scale_factor=4, mode="bilinear", align_corners=True)
        y = self.head(self.last(torch.cat([y, self.skip(low)], 1)))
        return F.interpolate(y, scale_factor=4, mode="bilinear", align_corners=True)


ZOO: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mobilenet_v2": (mobilenet_v2, (1, 3, 224, 224)),
    "mobilenet_v3_large": (mobilenet_v3_large, (1, 3, 224, 224)),
    "efficientnet_lite0": (efficientnet_lite0, (1, 3, 224, 224)),
    "regnety_008": (regnety_008, (1, 3, 224, 224)),
    "mobileone_s0": (mobileone_s0, (1, 3, 224, 224)),
    "densenet121": (densenet121, (1, 3, 224, 224)),
    "yolov5n": (YOLO, (1, 3, 320, 320)),
    "hrnet": (HRNet, (1, 3, 224, 224)),
    "deeplabv3plus": (DeepLabV3Plus, (1, 3, 224, 224)),
}


def build(name: str) -> tuple[nn.Module, torch.Tensor]:
    """The network ``name`` in evaluation mode, the same at each call, and an image for it."""
    torch.manual_seed(0)
    make, shape = ZOO[name]
    model = make().eval()
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            nn.init.uniform_(m.running_var, 0.5, 1.5)
            nn.init.normal_(m.running_mean, 0.0, 0.1)
            nn.init.uniform_(m.weight, 0.8, 1.2)
            nn.init.normal_(m.bias, 0.0, 0.1)
    return model, torch.randn(shape)
