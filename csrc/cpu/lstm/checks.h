// What the LSTMs of float and int8 weights ask of a shape, for the validation in api.cpp.
#pragma once

#include "common/sizes.h"
#include "pykernels/lstm.h"

namespace pk {
namespace {

inline Status check_layers(const LstmShape& s) {
  if (s.layers < 1 || s.layers > 1 << 16) return {"layers: expected 1 to 2^16"};
  if (s.directions != 1 && s.directions != 2) return {"directions: expected 1 or 2"};
  return kOk;
}

inline Status check_float(const LstmShape& s) {
  if (s.dtype != DType::f32 && s.dtype != DType::bf16) return {"dtype: expected float32 or bfloat16"};
  return kOk;
}

inline Status check_sequences(const LstmShape& s) {
  if (s.steps < 1) return {"steps: expected at least 1"};
  if (s.batch < 0) return {"batch: expected at least 0"};
  if (s.batch > int64_t{1} << 40 || !product_fits({s.steps, s.batch + 1, 1 << 16}))
    return {"steps, batch: too many rows"};
  if (!s.batch_sizes) return kOk;
  if (!s.starts) return {"batch_sizes: expected lstm_starts to have read them"};
  if (s.batch_sizes[0] != s.batch) return {"batch_sizes: expected the first to be the batch"};
  return kOk;
}

// The features of the widest layer's input.
inline int64_t widest_input(const LstmShape& s) {
  const int64_t above = s.directions * s.hidden;
  return s.input > above ? s.input : above;
}

}  // namespace
}  // namespace pk
