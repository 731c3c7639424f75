"""Networks that people run, in few lines: the structures of the papers and of timm, torchvision and YOLO, untrained.

`NETWORKS` has a function for each, and the shape of its input.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from . import detect, maps, mobile, residual, sequences, upwards

_IMAGE = (1, 3, 224, 224)

NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mobilenet_v2": (mobile.mobilenet_v2, _IMAGE),
    "mobilenet_v3_large": (mobile.mobilenet_v3_large, _IMAGE),
    "efficientnet_lite0": (mobile.efficientnet_lite0, _IMAGE),
    "efficientnet_b0": (mobile.efficientnet_b0, _IMAGE),
    "mobileone_s0": (mobile.mobileone_s0, _IMAGE),
    "regnety_008": (residual.regnety_008, _IMAGE),
    "resnext50": (residual.resnext50_32x4d, _IMAGE),
    "densenet121": (residual.densenet121, _IMAGE),
    "yolov5n": (detect.YOLOv5n, (1, 3, 320, 320)),
    "yolov8n": (detect.YOLOv8n, (1, 3, 640, 640)),
    "hrnet": (maps.HRNet, _IMAGE),
    "deeplabv3plus": (maps.DeepLabV3Plus, _IMAGE),
    "crnn": (maps.CRNN, (1, 1, 32, 128)),
    "wav2letter": (sequences.Wav2Letter, (1, 64, 400)),
    "tcn": (sequences.TCN, (1, 32, 1000)),
    "wav2vec_features": (sequences.Wav2VecFeatures, (1, 1, 16000)),
    "tacotron_encoder": (sequences.TacotronEncoder, (1, 512, 100)),
    "unet": (upwards.UNet, (1, 3, 128, 128)),
    "dcgan": (upwards.Generator, (1, 100, 1, 1)),
}


def build(name: str) -> tuple[nn.Module, Tensor]:
    """The network ``name`` in evaluation mode, the same at each call, and an input for it.

    Batch norm has statistics as after training, so that a wrong fold shows.
    """
    torch.manual_seed(0)
    make, shape = NETWORKS[name]
    model = make().eval()
    for m in model.modules():
        if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d):
            assert m.running_mean is not None
            assert m.running_var is not None
            nn.init.uniform_(m.running_var, 0.5, 1.5)
            nn.init.normal_(m.running_mean, 0.0, 0.1)
            nn.init.uniform_(m.weight, 0.8, 1.2)
            nn.init.normal_(m.bias, 0.0, 0.1)
    return model, torch.randn(shape)
