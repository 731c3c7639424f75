"""The models' twins in plain `torch.nn`: the same parameters under the same names, and the same results.

This module neither imports nor calls pykernels. So the tests check our models and `pykernels.optimize` against a twin,
in any dtype; in float64 it is the oracle.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

State = tuple[Tensor, Tensor]


def _downsample(inplanes: int, planes: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and inplanes == planes:
        return None
    return nn.Sequential(nn.Conv2d(inplanes, planes, 1, stride, bias=False), nn.BatchNorm2d(planes))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (He et al. 2015, figure 5 left)."""

    expansion = 1

    def __init__(self, inplanes: int, planes: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inplanes, planes, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.downsample = _downsample(inplanes, planes, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(N, inplanes, H, W) to (N, planes, H / stride, W / stride)."""
        shortcut = x if self.downsample is None else self.downsample(x)
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        y += shortcut
        return self.relu(y)


class Bottleneck(nn.Module):
    """1x1, 3x3 (which takes the stride), 1x1 onto four times the planes, and a shortcut."""

    expansion = 4

    def __init__(self, inplanes: int, planes: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inplanes, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, 4 * planes, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * planes)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _downsample(inplanes, 4 * planes, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(N, inplanes, H, W) to (N, 4 planes, H / stride, W / stride)."""
        shortcut = x if self.downsample is None else self.downsample(x)
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        y += shortcut
        return self.relu(y)


class ResNet(nn.Module):
    """`pykernels.models.ResNet` in plain PyTorch."""

    def __init__(self, block: str, layers: Sequence[int], num_classes: int, stem: str) -> None:
        super().__init__()
        kind: Any = {"BasicBlock": BasicBlock, "Bottleneck": Bottleneck}[block]
        wide = stem == "imagenet"
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False) if wide else nn.Conv2d(3, 64, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1) if wide else nn.Identity()
        width = 64 * kind.expansion
        self.layer1 = _stage(kind, 64, 64, layers[0], 1)
        self.layer2 = _stage(kind, width, 128, layers[1], 2)
        self.layer3 = _stage(kind, 2 * width, 256, layers[2], 2)
        self.layer4 = _stage(kind, 4 * width, 512, layers[3], 2)
        self.avgpool = nn.AdaptiveAvgPool2d(1) if wide else nn.AvgPool2d(4)
        self.fc = nn.Linear(8 * width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) to (N, num_classes)."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(torch.flatten(self.avgpool(x), 1))


def _stage(kind: Any, inplanes: int, planes: int, depth: int, stride: int) -> nn.Sequential:
    wide = planes * kind.expansion
    return nn.Sequential(kind(inplanes, planes, stride), *(kind(wide, planes) for _ in range(depth - 1)))


class LSTMLanguageModel(nn.Module):
    """`pykernels.models.LSTMLanguageModel` in plain PyTorch, without the streaming."""

    def __init__(self, vocab_size: int, emb_dim: int, hidden_dim: int, num_layers: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, emb_dim)
        self.lstm = nn.LSTM(emb_dim, hidden_dim, num_layers, batch_first=True)
        self.fc = nn.Linear(hidden_dim, vocab_size)

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """(B, T) token ids to (B, vocab_size) for the token after the last, and the state."""
        output, state = self.lstm(self.embedding(x), state)
        return self.fc(output[:, -1]), state


class CNNLSTM(nn.Module):
    """`pykernels.models.CNNLSTM` in plain PyTorch."""

    def __init__(
        self, num_classes: int, input_size: int, hidden_size: int, num_layers: int, per_frame: bool = False
    ) -> None:
        super().__init__()
        self.per_frame = per_frame
        self.conv1 = nn.Conv2d(1, 32, 3, padding=1)
        self.conv2 = nn.Conv2d(32, 64, 3, padding=1)
        self.lstm = nn.LSTM(input_size, hidden_size, num_layers, batch_first=True, bidirectional=True)
        self.fc = nn.Linear(2 * hidden_size, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1, T, F) to (B, num_classes), or with per_frame to (B, T / 4, num_classes)."""
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        frames = x.transpose(1, 2).flatten(2)  # (B, 64, T / 4, F / 4) to (B, T / 4, 64 F / 4)
        output, _ = self.lstm(frames)
        return self.fc(output if self.per_frame else output[:, -1])


_TWINS = {"ResNet": ResNet, "LSTMLanguageModel": LSTMLanguageModel, "CNNLSTM": CNNLSTM}


def reference_twin(model: nn.Module) -> nn.Module:
    """Makes the plain PyTorch model with copies of ``model``'s weights, in its dtypes, on its devices, in its mode.

    >>> oracle = reference_twin(pk.models.resnet18()).double().eval()

    Args:
        model: One of `pykernels.models`.

    Raises:
        TypeError: ``model`` is not one of `pykernels.models`.
    """
    for base in type(model).__mro__:
        if base.__module__.startswith("pykernels.models.") and base.__name__ in _TWINS:
            break
    else:
        raise TypeError(
            f"pykernels.reference_twin: model: expected one of {', '.join(_TWINS)} of pykernels.models; "
            f"got {type(model).__name__}"
        )
    config: dict[str, Any] = model.config  # type: ignore[assignment]
    # On meta: nothing is initialised only to be overwritten, and torch's random state stays as it is.
    with torch.device("meta"):
        twin = _TWINS[base.__name__](**config)
    twin.load_state_dict({name: t.detach().clone() for name, t in model.state_dict().items()}, assign=True)
    for name, parameter in twin.named_parameters():
        parameter.requires_grad_(model.get_parameter(name).requires_grad)
    return twin.train(model.training)
