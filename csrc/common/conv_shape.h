// What every device asks of a convolution's shape, for the validation in api.cpp and api.cu.
#pragma once

#include <initializer_list>

#include "pykernels/conv_bn_act.h"

namespace pk {
namespace {

// `largest`: of a size, stride, padding or dilation; `too_large` says so.
Status check_conv_shape(const ConvShape& s, int64_t largest, const char* too_large) {
  for (int64_t size : {s.n, s.c, s.h, s.w, s.k, s.r, s.s, s.stride_h, s.stride_w, s.pad_top, s.pad_left, s.pad_bottom,
                       s.pad_right, s.dilation_h, s.dilation_w, s.groups}) {
    if (size < 0) return {"a size, stride, padding or dilation is negative"};
    if (size > largest) return {too_large};
  }
  if (s.k < 1) return {"weight: expected at least one output channel, got shape (0, ...)"};
  if (s.r < 1 || s.s < 1) return {"weight: expected a kernel of at least 1 x 1"};
  if (s.stride_h < 1 || s.stride_w < 1) return {"stride: expected at least 1"};
  if (s.dilation_h < 1 || s.dilation_w < 1) return {"dilation: expected at least 1"};
  if (s.groups < 1) return {"groups: expected at least 1"};
  if (s.c % s.groups != 0) return {"groups: expected a divisor of x's channels"};
  if (s.k % s.groups != 0) return {"groups: expected a divisor of weight's output channels"};
  if (s.n > 0 && s.c > 0 && (s.h == 0 || s.w == 0)) {
    return {"x: expected height and width of at least 1; only the batch or the channels may be 0"};
  }
  if (s.h + s.pad_top + s.pad_bottom < s.dilation_h * (s.r - 1) + 1 ||
      s.w + s.pad_left + s.pad_right < s.dilation_w * (s.s - 1) + 1) {
    return {"weight: the kernel (dilation included) is larger than the padded input"};
  }
  return kOk;
}

}  // namespace
}  // namespace pk
