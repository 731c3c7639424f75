// Sequence tensors and states to dense float32 rows and back, whatever their dtype and strides.
#pragma once

#include "cpu/lstm/layout.h"
#include "cpu/parallel_for.h"
#include "cpu/vec.h"

namespace pk {
namespace PK_ISA {
namespace {

inline void read_row(const void* data, DType dtype, int64_t offset, int64_t n, float* out) {
  if (dtype == DType::f32) {
    std::memcpy(out, static_cast<const float*>(data) + offset, static_cast<size_t>(n) * sizeof(float));
    return;
  }
  const bf16_t* const p = static_cast<const bf16_t*>(data) + offset;
  int64_t j = 0;
  for (; j + kLanes <= n; j += kLanes) store(out + j, load_bf16(p + j));
  if (j < n) {
    bf16_t tail[kLanes] = {};
    std::memcpy(tail, p + j, static_cast<size_t>(n - j) * sizeof(bf16_t));
    store_partial(out + j, load_bf16(tail), n - j);
  }
}

inline void write_row(void* data, DType dtype, int64_t offset, int64_t n, const float* from) {
  if (dtype == DType::f32) {
    std::memcpy(static_cast<float*>(data) + offset, from, static_cast<size_t>(n) * sizeof(float));
    return;
  }
  bf16_t* const p = static_cast<bf16_t*>(data) + offset;
  int64_t j = 0;
  for (; j + kLanes <= n; j += kLanes) store_bf16(p + j, load<F32>(from + j));
  if (j < n) {
    bf16_t tail[kLanes];
    store_bf16(tail, load_partial(from + j, n - j));
    std::memcpy(p + j, tail, static_cast<size_t>(n - j) * sizeof(bf16_t));
  }
}

// The first `valid` lanes of v.
inline void write_units(void* data, DType dtype, int64_t offset, F32 v, int64_t valid) {
  if (dtype == DType::f32) {
    float* const p = static_cast<float*>(data) + offset;
    if (valid == kLanes)
      store(p, v);
    else
      store_partial(p, v, valid);
  } else {
    bf16_t* const p = static_cast<bf16_t*>(data) + offset;
    if (valid == kLanes) {
      store_bf16(p, v);
    } else {
      bf16_t tail[kLanes];
      store_bf16(tail, v);
      std::memcpy(p, tail, static_cast<size_t>(valid) * sizeof(bf16_t));
    }
  }
}

// Is it anything but dense float32 rows?
inline bool needs_copy(const LstmSequence& q, const LstmShape& s, int64_t features) {
  return s.dtype != DType::f32 || !is_dense(q, s, features);
}
// The sequence as dense float32 rows: itself where it is that already, else copied to `copy`.
inline const float* dense_rows(const LstmSequence& q, const LstmShape& s, const Rows& rows, int64_t features,
                               float* copy, const Executor& executor) {
  if (!needs_copy(q, s, features)) return static_cast<const float*>(q.data);
  parallel_for(executor, 0, s.steps, 1 + 32768 / (s.batch * features + 1), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t)
      for (int64_t b = 0; b < rows.active(t); ++b)
        read_row(q.data, s.dtype, offset_of(q, rows, t, b), features, copy + (rows.first(t) + b) * features);
  });
  return copy;
}

}  // namespace
}  // namespace PK_ISA
}  // namespace pk
