"""Detectors: the YOLOs of versions 5 and 8, at their smallest."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import ConvNormAct


def _yolo(c: int, k: int, kernel: int = 1, stride: int = 1) -> ConvNormAct:
    return ConvNormAct(c, k, kernel, stride, act=nn.SiLU)


class Bottleneck(nn.Module):
    """Two convolutions, added to what came in where ``adds``."""

    def __init__(self, c: int, adds: bool, first: int = 1) -> None:
        super().__init__()
        self.cv1, self.cv2, self.adds = _yolo(c, c, first), _yolo(c, c, 3), adds

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> the same shape."""
        return x + self.cv2(self.cv1(x)) if self.adds else self.cv2(self.cv1(x))


class C3(nn.Module):
    """Version 5's block: half of the channels go through bottlenecks."""

    def __init__(self, c: int, k: int, n: int = 1, adds: bool = True) -> None:
        super().__init__()
        half = k // 2
        self.cv1, self.cv2, self.cv3 = _yolo(c, half), _yolo(c, half), _yolo(2 * half, k)
        self.m = nn.Sequential(*(Bottleneck(half, adds) for _ in range(n)))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, K, H, W)."""
        return self.cv3(torch.cat((self.m(self.cv1(x)), self.cv2(x)), 1))


class C2f(nn.Module):
    """Version 8's block: the result of each bottleneck is kept."""

    def __init__(self, c: int, k: int, n: int = 1, adds: bool = True) -> None:
        super().__init__()
        half = k // 2
        self.cv1, self.cv2 = _yolo(c, 2 * half), _yolo((2 + n) * half, k)
        self.m = nn.ModuleList(Bottleneck(half, adds, 3) for _ in range(n))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, K, H, W)."""
        y = list(self.cv1(x).chunk(2, 1))
        y.extend(m(y[-1]) for m in self.m)
        return self.cv2(torch.cat(y, 1))


class Pyramid(nn.Module):
    """Maxima over ever larger neighbourhoods (SPPF)."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.cv1, self.cv2, self.m = _yolo(c, c // 2), _yolo(c * 2, c), nn.MaxPool2d(5, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> the same shape."""
        x = self.cv1(x)
        y1 = self.m(x)
        y2 = self.m(y1)
        return self.cv2(torch.cat((x, y1, y2, self.m(y2)), 1))


class YOLOv5n(nn.Module):
    """(N, 3, H, W) -> (N, anchors, classes + 5), boxes not decoded."""

    def __init__(self, classes: int = 80) -> None:
        super().__init__()
        self.p3 = nn.Sequential(
            nn.Sequential(nn.Conv2d(3, 16, 6, 2, 2, bias=False), nn.BatchNorm2d(16), nn.SiLU()), _yolo(16, 32, 3, 2),
            C3(32, 32), _yolo(32, 64, 3, 2), C3(64, 64, 2),
        )  # fmt: skip
        self.p4 = nn.Sequential(_yolo(64, 128, 3, 2), C3(128, 128, 3))
        self.p5 = nn.Sequential(_yolo(128, 256, 3, 2), C3(256, 256), Pyramid(256))
        self.l5, self.t4 = _yolo(256, 128), C3(256, 128, 1, False)
        self.l4, self.o3 = _yolo(128, 64), C3(128, 64, 1, False)
        self.d4, self.o4 = _yolo(64, 64, 3, 2), C3(128, 128, 1, False)
        self.d5, self.o5 = _yolo(128, 128, 3, 2), C3(256, 256, 1, False)
        self.heads = nn.ModuleList(nn.Conv2d(c, 3 * (classes + 5), 1) for c in (64, 128, 256))

    def forward(self, x: Tensor) -> Tensor:
        """As the class says."""
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


class YOLOv8n(nn.Module):
    """(N, 3, H, W) -> (N, 4 + classes, places): distances to the box's sides, and scores."""

    def __init__(self, classes: int = 80, bins: int = 16) -> None:
        super().__init__()
        self.p3 = nn.Sequential(
            _yolo(3, 16, 3, 2), _yolo(16, 32, 3, 2), C2f(32, 32), _yolo(32, 64, 3, 2), C2f(64, 64, 2)
        )
        self.p4 = nn.Sequential(_yolo(64, 128, 3, 2), C2f(128, 128, 2))
        self.p5 = nn.Sequential(_yolo(128, 256, 3, 2), C2f(256, 256), Pyramid(256))
        self.up, self.t4, self.o3 = nn.Upsample(scale_factor=2), C2f(384, 128, 1, False), C2f(192, 64, 1, False)
        self.d4, self.o4 = _yolo(64, 64, 3, 2), C2f(192, 128, 1, False)
        self.d5, self.o5 = _yolo(128, 128, 3, 2), C2f(384, 256, 1, False)
        widths = (64, 128, 256)
        self.boxes = nn.ModuleList(self._head(c, 64, 4 * bins) for c in widths)
        self.scores = nn.ModuleList(self._head(c, 80, classes) for c in widths)
        self.bins, self.classes = bins, classes
        self.register_buffer("places", torch.arange(bins, dtype=torch.float32))
        self.places: Tensor

    @staticmethod
    def _head(c: int, width: int, k: int) -> nn.Module:
        return nn.Sequential(_yolo(c, width, 3), _yolo(width, width, 3), nn.Conv2d(width, k, 1))

    def forward(self, x: Tensor) -> Tensor:
        """As the class says."""
        p3 = self.p3(x)
        p4 = self.p4(p3)
        p5 = self.p5(p4)
        t4 = self.t4(torch.cat((self.up(p5), p4), 1))
        o3 = self.o3(torch.cat((self.up(t4), p3), 1))
        o4 = self.o4(torch.cat((self.d4(o3), t4), 1))
        o5 = self.o5(torch.cat((self.d5(o4), p5), 1))
        out = []
        for i, y in enumerate((o3, o4, o5)):
            out.append(torch.cat((self.boxes[i](y), self.scores[i](y)), 1).flatten(2))
        boxes, scores = torch.cat(out, 2).split((4 * self.bins, self.classes), 1)
        chances = boxes.unflatten(1, (4, self.bins)).softmax(2)
        return torch.cat(((chances * self.places[:, None]).sum(2), scores.sigmoid()), 1)
