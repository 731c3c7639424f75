"""The ops: public functions. Each family's folder holds its spec, reference, autograd and kernel launchers."""

from pykernels._imports import after_import
from pykernels.ops._activation import ACTIVATIONS
from pykernels.ops._flops import register
from pykernels.ops.batch_norm_act import batch_norm_act
from pykernels.ops.conv_bn_act import conv_bn_act
from pykernels.ops.conv_bn_act.transposed import conv_transpose_bn_act
from pykernels.ops.group_norm_act import group_norm_act
from pykernels.ops.int8_conv2d import int8_conv2d
from pykernels.ops.int8_lstm import int8_lstm, int8_lstm_cell
from pykernels.ops.int8_matmul import int8_matmul, quantize_int8
from pykernels.ops.int8_pointwise import int8_add, int8_affine, int8_dequantize, int8_lookup, int8_quantize
from pykernels.ops.layer_norm import layer_norm
from pykernels.ops.lstm import lstm, lstm_cell
from pykernels.ops.pool2d import avg_pool2d, global_avg_pool2d, max_pool2d
from pykernels.ops.shuffle import channel_shuffle, pixel_shuffle, pixel_unshuffle
from pykernels.ops.squeeze_excite import int8_squeeze_excite, squeeze_excite
from pykernels.ops.upsample2d import upsample2d
from pykernels.ops.weight_only_linear import weight_only_linear

__all__ = [
    "ACTIVATIONS",
    "avg_pool2d",
    "batch_norm_act",
    "channel_shuffle",
    "conv_bn_act",
    "conv_transpose_bn_act",
    "global_avg_pool2d",
    "group_norm_act",
    "int8_add",
    "int8_affine",
    "int8_conv2d",
    "int8_dequantize",
    "int8_lookup",
    "int8_lstm",
    "int8_lstm_cell",
    "int8_matmul",
    "int8_quantize",
    "int8_squeeze_excite",
    "layer_norm",
    "lstm",
    "lstm_cell",
    "max_pool2d",
    "pixel_shuffle",
    "pixel_unshuffle",
    "quantize_int8",
    "squeeze_excite",
    "upsample2d",
    "weight_only_linear",
]

after_import("torch.utils.flop_counter", register)
