"""ResNet, the LSTM language model and the CNN-LSTM, assembled from `pykernels.nn`; their twins in plain PyTorch."""

from pykernels.models.cnn_lstm import CNNLSTM
from pykernels.models.lstm_lm import LSTMLanguageModel
from pykernels.models.reference import reference_twin
from pykernels.models.resnet import (
    BasicBlock,
    Bottleneck,
    ResNet,
    resnet18,
    resnet34,
    resnet50,
    resnet101,
    resnet152,
)

__all__ = [
    "CNNLSTM",
    "BasicBlock",
    "Bottleneck",
    "LSTMLanguageModel",
    "ResNet",
    "reference_twin",
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
]
