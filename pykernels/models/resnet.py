"""ResNet-18, 34, 50, 101 and 152 on fused convolutions (He et al., Deep Residual Learning for Image Recognition, 2015).

Parameters have torchvision's names, so its state_dicts load as they are; Bottleneck takes the stride in its 3x3
convolution, as torchvision's does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pykernels.models._fused import Fused
from pykernels.ops._arguments import check_choice, check_int, fail

STEMS = ("imagenet", "cifar")


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut.

    Args:
        inplanes: The channels of the input.
        planes: The channels of the result.
        stride: The stride of the first convolution.
    """

    expansion = 1

    def __init__(self, inplanes: int, planes: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inplanes, planes, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self._first = Fused(self.conv1, self.bn1, "relu")
        self._second = Fused(self.conv2, self.bn2, "relu")
        self.downsample, self._shortcut = _downsample(inplanes, planes, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Runs the block.

        Args:
            x: (N, inplanes, H, W).

        Returns:
            (N, planes, H / stride, W / stride).
        """
        y = self._first(x, self.conv1, self.bn1)
        return self._second(y, self.conv2, self.bn2, residual=_run_shortcut(self, x))


class Bottleneck(nn.Module):
    """Three convolutions, 1x1, 3x3 and 1x1, and a shortcut.

    Args:
        inplanes: The channels of the input.
        planes: The channels between the convolutions; the result has four times as many.
        stride: The stride of the 3x3 convolution.
    """

    expansion = 4

    def __init__(self, inplanes: int, planes: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inplanes, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, 4 * planes, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * planes)
        self._first = Fused(self.conv1, self.bn1, "relu")
        self._second = Fused(self.conv2, self.bn2, "relu")
        self._third = Fused(self.conv3, self.bn3, "relu")
        self.downsample, self._shortcut = _downsample(inplanes, 4 * planes, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Runs the block.

        Args:
            x: (N, inplanes, H, W).

        Returns:
            (N, 4 planes, H / stride, W / stride).
        """
        y = self._first(x, self.conv1, self.bn1)
        y = self._second(y, self.conv2, self.bn2)
        return self._third(y, self.conv3, self.bn3, residual=_run_shortcut(self, x))


class ResNet(nn.Module):
    """A residual network: stem, four stages of blocks, pooling, classifier.

    Each stage after the first doubles the channels and halves height and width.

    >>> model = pk.models.resnet50().eval()
    >>> model.load_state_dict(torch.load("resnet50.pth"))  # torchvision's file
    >>> with torch.no_grad():
    ...     logits = model(images)  # (N, 3, 224, 224) to (N, 1000)

    In eval mode without gradients every convolution, its batch norm, the residual add and the ReLU are one kernel on
    packed weights. In training the batch norms take the batch's statistics, and everything is differentiable.

    Args:
        block: `BasicBlock` or `Bottleneck`.
        layers: How many blocks each of the four stages has.
        num_classes: Width of the classifier; None is 1000, for the cifar stem 10.
        stem: ``"imagenet"``: 7x7 convolution of stride 2, max-pool, and a global average pool; any image of at least
            1x1. ``"cifar"``: 3x3 convolution of stride 1, no max-pool, 4x4 average pool; images of 32x32.

    Raises:
        TypeError: ``block`` is neither block, or a count is not an int.
        ValueError: ``stem`` is neither stem, or a count is not positive.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        layers: Sequence[int],
        num_classes: int | None = None,
        stem: str = "imagenet",
    ) -> None:
        super().__init__()
        if not (isinstance(block, type) and issubclass(block, BasicBlock | Bottleneck)):
            fail(TypeError, "ResNet", "block", "BasicBlock or Bottleneck", repr(block))
        check_choice("ResNet", "stem", stem, STEMS)
        if len(layers) != 4:
            fail(ValueError, "ResNet", "layers", "four counts", list(layers))
        if num_classes is None:
            num_classes = 1000 if stem == "imagenet" else 10
        check_int("ResNet", "num_classes", num_classes, 1)
        for i, depth in enumerate(layers):
            check_int("ResNet", f"layers[{i}]", depth, 1)
        kind = "BasicBlock" if issubclass(block, BasicBlock) else "Bottleneck"
        #: What the twin in `pykernels.models.reference` is built from.
        self.config: dict[str, Any] = {
            "block": kind, "layers": tuple(layers), "num_classes": num_classes, "stem": stem,
        }  # fmt: skip
        self.stem = stem
        wide = stem == "imagenet"
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False) if wide else nn.Conv2d(3, 64, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self._first = Fused(self.conv1, self.bn1, "relu")
        self.layer1 = _stage(block, 64, 64, layers[0], 1)
        self.layer2 = _stage(block, 64 * block.expansion, 128, layers[1], 2)
        self.layer3 = _stage(block, 128 * block.expansion, 256, layers[2], 2)
        self.layer4 = _stage(block, 256 * block.expansion, 512, layers[3], 2)
        self.fc = nn.Linear(512 * block.expansion, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Classifies images.

        Args:
            x: (N, 3, H, W); with the cifar stem (N, 3, 32, 32).

        Returns:
            (N, num_classes) logits.

        Raises:
            ValueError: ``x`` is of another shape.
        """
        if not isinstance(x, torch.fx.Proxy):
            self._check(x)
            if x.is_cuda:  # the kernels' layout there; the logits have none
                x = x.contiguous(memory_format=torch.channels_last)
        x = self._first(x, self.conv1, self.bn1)
        if self.stem == "imagenet":
            x = F.max_pool2d(x, 3, 2, 1)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        x = F.adaptive_avg_pool2d(x, 1) if self.stem == "imagenet" else F.avg_pool2d(x, 4)
        return self.fc(torch.flatten(x, 1))

    if TYPE_CHECKING:
        __call__ = forward

    def _check(self, x: Tensor) -> None:
        size = "H, W" if self.stem == "imagenet" else "32, 32"
        channels = getattr(self.conv1, "in_channels", None)  # it may have been replaced
        good = x.dim() == 4 and channels in (None, x.shape[1])
        if good and self.stem == "cifar":
            good = x.shape[2] == 32 and x.shape[3] == 32
        if not good:
            expected = f"(N, {channels or 'C'}, {size}) for the {self.stem} stem"
            fail(ValueError, "ResNet", "x", expected, tuple(x.shape))


def _downsample(inplanes: int, planes: int, stride: int) -> tuple[nn.Sequential | None, Fused | None]:
    if stride == 1 and inplanes == planes:
        return None, None
    conv, bn = nn.Conv2d(inplanes, planes, 1, stride, bias=False), nn.BatchNorm2d(planes)
    return nn.Sequential(conv, bn), Fused(conv, bn, "none")


def _run_shortcut(block: BasicBlock | Bottleneck, x: Tensor) -> Tensor:
    if block.downsample is None:
        return x
    if block._shortcut is None or not isinstance(block.downsample, nn.Sequential) or len(block.downsample) != 2:
        return block.downsample(x)  # it has been replaced
    return block._shortcut(x, block.downsample[0], block.downsample[1])


def _stage(
    block: type[BasicBlock] | type[Bottleneck], inplanes: int, planes: int, depth: int, stride: int
) -> nn.Sequential:
    wide = planes * block.expansion
    return nn.Sequential(block(inplanes, planes, stride), *(block(wide, planes) for _ in range(depth - 1)))


def resnet18(num_classes: int | None = None, stem: str = "imagenet") -> ResNet:
    """ResNet-18: 11.7 M parameters, 3.6 GFLOP at 224x224; see `ResNet`.

    Args:
        num_classes: Width of the classifier; None is 1000, for the cifar stem 10.
        stem: ``"imagenet"`` or ``"cifar"``.
    """
    return ResNet(BasicBlock, (2, 2, 2, 2), num_classes, stem)


def resnet34(num_classes: int | None = None, stem: str = "imagenet") -> ResNet:
    """ResNet-34: 21.8 M parameters, 7.3 GFLOP at 224x224; see `ResNet`.

    Args:
        num_classes: Width of the classifier; None is 1000, for the cifar stem 10.
        stem: ``"imagenet"`` or ``"cifar"``.
    """
    return ResNet(BasicBlock, (3, 4, 6, 3), num_classes, stem)


def resnet50(num_classes: int | None = None, stem: str = "imagenet") -> ResNet:
    """ResNet-50: 25.6 M parameters, 8.2 GFLOP at 224x224; see `ResNet`.

    Args:
        num_classes: Width of the classifier; None is 1000, for the cifar stem 10.
        stem: ``"imagenet"`` or ``"cifar"``.
    """
    return ResNet(Bottleneck, (3, 4, 6, 3), num_classes, stem)


def resnet101(num_classes: int | None = None, stem: str = "imagenet") -> ResNet:
    """ResNet-101: 44.5 M parameters, 15.6 GFLOP at 224x224; see `ResNet`.

    Args:
        num_classes: Width of the classifier; None is 1000, for the cifar stem 10.
        stem: ``"imagenet"`` or ``"cifar"``.
    """
    return ResNet(Bottleneck, (3, 4, 23, 3), num_classes, stem)


def resnet152(num_classes: int | None = None, stem: str = "imagenet") -> ResNet:
    """ResNet-152: 60.2 M parameters, 23.0 GFLOP at 224x224; see `ResNet`.

    Args:
        num_classes: Width of the classifier; None is 1000, for the cifar stem 10.
        stem: ``"imagenet"`` or ``"cifar"``.
    """
    return ResNet(Bottleneck, (3, 8, 36, 3), num_classes, stem)
