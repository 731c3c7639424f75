"""Modules with the constructor arguments and the state_dict keys of the torch modules that they replace."""

from pykernels.nn.conv import ConvBNAct2d
from pykernels.nn.conv1d import ConvBNAct1d
from pykernels.nn.conv_transpose import ConvTransposeBNAct2d
from pykernels.nn.int8 import Int8Linear
from pykernels.nn.int8_conv import Int8Conv2d
from pykernels.nn.int8_lstm import Int8LSTM, Int8LSTMCell
from pykernels.nn.lstm import LSTM, LSTMCell

__all__ = [
    "LSTM",
    "ConvBNAct1d",
    "ConvBNAct2d",
    "ConvTransposeBNAct2d",
    "Int8Conv2d",
    "Int8LSTM",
    "Int8LSTMCell",
    "Int8Linear",
    "LSTMCell",
]
