// The arguments of batch_norm_act's ops, stated once, as conv_bn_act.h states those of convolution.
#pragma once

#include "pykernels/cuda/batch_norm_act.h"
#include "torch/boxed.h"

namespace pk::binding {

struct BatchNormCall {
  bool training;
  double eps;
  int64_t activation;
  double negative_slope;

  void each(auto&& field) {
    field("training", training);
    field("eps", eps);
    field("activation", activation);
    field("negative_slope", negative_slope);
  }

  // `training` is the gradient's affair.
  void fill(const char* op, cuda::BatchNormActArgs* args) const {
    args->eps = static_cast<float>(eps);
    args->activation = to_activation(activation, op);
    args->negative_slope = static_cast<float>(negative_slope);
  }
};

}  // namespace pk::binding
