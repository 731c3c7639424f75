// The arguments of convolution's ops, on every device. ConvCall and Int8ConvCall state once what is not a tensor: their
// `each` gives the fields to schemas and kernels (boxed.h), and `fill` checks them and sets the kernels' arguments.
#pragma once

#include "pykernels/conv_bn_act.h"
#include "pykernels/int8_conv2d.h"
#include "torch/boxed.h"

namespace pk::binding {

using MaybeTensor = std::optional<Tensor>;

inline const void* data_of(const Tensor& t) { return t.const_data_ptr(); }

inline ConvTensor to_conv_tensor(const Tensor& t) {
  ConvTensor result;
  result.data = data_of(t);
  for (int64_t i = 0; i < 4; ++i) result.stride[i] = t.stride(i);
  return result;
}

inline void check_length(const Ints& values, size_t expected, const char* op, const char* argument) {
  check(values.size() == expected, op, argument, "expected ", expected, " values, got ", values.size());
}

inline void check_dim(const Tensor& t, int64_t expected, const char* op, const char* argument) {
  check(t.dim() == expected, op, argument, "expected ", expected, " dimensions, got shape ", shape_of(t));
}

// Of every op of convolution.
struct Geometry {
  Ints stride, padding, dilation;
  int64_t groups;

  void each(auto&& field) {
    field("stride", stride);
    field("padding", padding);
    field("dilation", dilation);
    field("groups", groups);
  }

  // Sets all of `shape` but the tensors' sizes.
  void fill(const char* op, ConvShape* shape) const {
    check_length(stride, 2, op, "stride");
    check_length(padding, 4, op, "padding");
    check_length(dilation, 2, op, "dilation");
    check(stride[0] >= 1 && stride[1] >= 1, op, "stride", "expected at least 1, got (", stride[0], ", ", stride[1],
          ")");
    for (int64_t p : padding) check(p >= 0, op, "padding", "expected at least 0, got ", p);
    check(dilation[0] >= 1 && dilation[1] >= 1, op, "dilation", "expected at least 1, got (", dilation[0], ", ",
          dilation[1], ")");
    shape->stride_h = stride[0];
    shape->stride_w = stride[1];
    shape->pad_top = padding[0];
    shape->pad_left = padding[1];
    shape->pad_bottom = padding[2];
    shape->pad_right = padding[3];
    shape->dilation_h = dilation[0];
    shape->dilation_w = dilation[1];
  }
};

// conv_bn_act's.
struct ConvCall {
  Geometry geometry;
  int64_t activation;
  double negative_slope;
  bool tf32;

  void each(auto&& field) {
    geometry.each(field);
    field("activation", activation);
    field("negative_slope", negative_slope);
    field("tf32=False", tf32);
  }

  void fill(const char* op, ConvOptions* options) const {
    options->activation = to_activation(activation, op);
    options->negative_slope = static_cast<float>(negative_slope);
    options->tf32 = tf32;
  }
};

// int8_conv2d's.
struct Int8ConvCall {
  double residual_scale;
  Geometry geometry;
  int64_t activation;
  double negative_slope, out_scale;
  ScalarType out_dtype;
  int64_t x_zero_point, residual_zero_point, out_zero_point;

  void each(auto&& field) {
    field("residual_scale", residual_scale);
    geometry.each(field);
    field("activation", activation);
    field("negative_slope", negative_slope);
    field("out_scale", out_scale);
    field("out_dtype", out_dtype);
    field("x_zero_point=0", x_zero_point);
    field("residual_zero_point=0", residual_zero_point);
    field("out_zero_point=0", out_zero_point);
  }

  void fill(const char* op, Int8ConvOptions* options) const {
    const int64_t zeros[] = {x_zero_point, residual_zero_point, out_zero_point};
    const char* const names[] = {"x_zero_point", "residual_zero_point", "out_zero_point"};
    for (int i = 0; i < 3; ++i) {
      check(zeros[i] >= -128 && zeros[i] <= 127, op, names[i], "expected a number in [-128, 127], got ", zeros[i]);
    }
    options->x_zero_point = static_cast<int32_t>(x_zero_point);
    options->residual_zero_point = static_cast<int32_t>(residual_zero_point);
    options->out_zero_point = static_cast<int32_t>(out_zero_point);
    options->residual_scale = static_cast<float>(residual_scale);
    options->out_scale = static_cast<float>(out_scale);
    options->activation = to_activation(activation, op);
    options->negative_slope = static_cast<float>(negative_slope);
    options->out_dtype = to_dtype(out_dtype, op, "out_dtype");
  }

  // Args: cuda::Int8ConvArgs.
  template <class Args>
  void fill(const char* op, Args* args) const {
    check(x_zero_point == 0 && residual_zero_point == 0 && out_zero_point == 0, op, "zero points",
          "the CUDA kernels have none, got (", x_zero_point, ", ", residual_zero_point, ", ", out_zero_point, ")");
    args->residual_scale = static_cast<float>(residual_scale);
    args->activation = to_activation(activation, op);
    args->negative_slope = static_cast<float>(negative_slope);
    args->y_scale = static_cast<float>(out_scale);
    args->y_dtype = to_dtype(out_dtype, op, "out_dtype", true);
  }
};

// The shape of a weight alone, with an x that any weight suits.
inline ConvShape weight_shape_of(const Ints& weight, int64_t groups, const char* op, const char* argument) {
  check_length(weight, 4, op, argument);
  check(groups >= 1, op, "groups", "expected at least 1, got ", groups);
  for (int64_t size : weight) check(size >= 0, op, argument, "expected sizes that are not negative, got ", size);
  check(weight[1] <= (int64_t{1} << 31) / groups, op, argument, "expected fewer channels, got ", weight[1], " x ",
        groups, " groups");
  ConvShape shape{};
  shape.n = 0;
  shape.c = weight[1] * groups;
  shape.k = weight[0];
  shape.r = shape.h = weight[2];
  shape.s = shape.w = weight[3];
  shape.stride_h = shape.stride_w = shape.dilation_h = shape.dilation_w = 1;
  shape.groups = groups;
  return shape;
}

// The convolution of `x`, of four dimensions, by a weight of this shape.
inline ConvShape conv_shape_of(const char* op, const Tensor& x, const Ints& weight_shape, const Geometry& geometry) {
  ConvShape shape = weight_shape_of(weight_shape, geometry.groups, op, "weight");
  geometry.fill(op, &shape);
  check(x.size(1) == shape.c, op, "x", "expected ", shape.c, " channels (weight's ", weight_shape[1], " x ",
        geometry.groups, " groups), got shape ", shape_of(x));
  shape.n = x.size(0);
  shape.h = x.size(2);
  shape.w = x.size(3);
  return shape;
}

}  // namespace pk::binding
