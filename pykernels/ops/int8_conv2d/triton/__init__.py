"""int8_conv2d in Triton: the convolution kernel of `pykernels.ops.conv_bn_act.triton`, with integer sums."""

from pykernels.ops.conv_bn_act.triton import int8_conv2d as int8_conv2d
