// From a tile's sums to y: cast(act(scale[k] * sum + shift[k] + residual_scale * residual) * y_scale), or to the
// partial sums of a split.
//
// The sums are first laid out as a tile in shared memory, whatever fragments they come from; then a rolled loop takes
// eight channels of one pixel at a time. So there is one copy of the code however large the tile is; y and residual are
// accessed in 16 bytes, neighbouring lanes at neighbouring channels, or, where pixels are what is adjacent (NCHW),
// neighbouring lanes at neighbouring pixels.
#pragma once

#include "cuda/activate.cuh"
#include "cuda/conv_bn_act/kernels.h"
#include "cuda/numeric.cuh"

namespace pk::cuda::conv {

// For y and residual of the int8 kernels: their types are known at run time only.
struct AnyType {};

// ---- Eight channels in memory ----

PK_DEVICE void load_eight(const float* from, float (&v)[8]) {
  const float4 a = *reinterpret_cast<const float4*>(from), b = *reinterpret_cast<const float4*>(from + 4);
  v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w, v[4] = b.x, v[5] = b.y, v[6] = b.z, v[7] = b.w;
}
template <class T>
PK_DEVICE void load_eight_halves(const T* from, float (&v)[8]) {
  const uint4 raw = *reinterpret_cast<const uint4*>(from);
  const uint32_t words[4] = {raw.x, raw.y, raw.z, raw.w};
  PK_UNROLL
  for (int i = 0; i < 8; ++i) v[i] = to_float(T{static_cast<uint16_t>(words[i / 2] >> (i % 2 * 16))});
}
PK_DEVICE void load_eight(const f16* from, float (&v)[8]) { load_eight_halves(from, v); }
PK_DEVICE void load_eight(const bf16* from, float (&v)[8]) { load_eight_halves(from, v); }
PK_DEVICE void load_eight(const int8_t* from, float (&v)[8]) {
  const uint2 raw = *reinterpret_cast<const uint2*>(from);
  const uint32_t words[2] = {raw.x, raw.y};
  PK_UNROLL
  for (int i = 0; i < 8; ++i) v[i] = static_cast<float>(static_cast<int8_t>(words[i / 4] >> (i % 4 * 8)));
}

PK_DEVICE void store_eight(float* to, const float (&v)[8]) {
  *reinterpret_cast<float4*>(to) = make_float4(v[0], v[1], v[2], v[3]);
  *reinterpret_cast<float4*>(to + 4) = make_float4(v[4], v[5], v[6], v[7]);
}
template <class T>
PK_DEVICE void store_eight_halves(T* to, const float (&v)[8]) {
  *reinterpret_cast<uint4*>(to) =
      make_uint4(pack2<T>(v[0], v[1]), pack2<T>(v[2], v[3]), pack2<T>(v[4], v[5]), pack2<T>(v[6], v[7]));
}
PK_DEVICE void store_eight(f16* to, const float (&v)[8]) { store_eight_halves(to, v); }
PK_DEVICE void store_eight(bf16* to, const float (&v)[8]) { store_eight_halves(to, v); }
PK_DEVICE void store_eight(int8_t* to, const float (&v)[8]) {
  uint32_t words[2] = {0, 0};
  PK_UNROLL
  for (int i = 0; i < 8; ++i) {
    words[i / 4] |= static_cast<uint32_t>(static_cast<uint8_t>(from_float<int8_t>(v[i]))) << (i % 4 * 8);
  }
  *reinterpret_cast<uint2*>(to) = make_uint2(words[0], words[1]);
}

PK_DEVICE float widen(float x) { return x; }
PK_DEVICE float widen(f16 x) { return to_float(x); }
PK_DEVICE float widen(bf16 x) { return to_float(x); }
PK_DEVICE float widen(int8_t x) { return static_cast<float>(x); }

// `count` of eight channels, `stride` apart.
template <class T>
PK_DEVICE void load_channels(const T* from, int64_t stride, bool vectors, int count, float (&v)[8]) {
  if (vectors && count == 8) {
    load_eight(from, v);
    return;
  }
  PK_UNROLL
  for (int i = 0; i < 8; ++i) v[i] = i < count ? widen(from[i * stride]) : 0.0f;
}
template <class T>
PK_DEVICE void store_channels(T* to, int64_t stride, bool vectors, int count, const float (&v)[8]) {
  if (vectors && count == 8) {
    store_eight(to, v);
    return;
  }
  PK_UNROLL
  for (int i = 0; i < 8; ++i) {
    if (i < count) to[i * stride] = from_float<T>(v[i]);
  }
}

// The sums themselves.
PK_DEVICE void store_sums(int32_t* to, int64_t stride, bool vectors, int count, const int32_t (&sum)[8]) {
  if (vectors && count == 8) {
    PK_UNROLL
    for (int i = 0; i < 8; i += 4) {
      *reinterpret_cast<uint4*>(to + i) =
          make_uint4(static_cast<uint32_t>(sum[i]), static_cast<uint32_t>(sum[i + 1]),
                     static_cast<uint32_t>(sum[i + 2]), static_cast<uint32_t>(sum[i + 3]));
    }
    return;
  }
  PK_UNROLL
  for (int i = 0; i < 8; ++i) {
    if (i < count) to[i * stride] = sum[i];
  }
}

// f(T{}) for the type that `Type` is, or, for AnyType, that `dtype` says.
template <class Type, class F>
PK_DEVICE void with_type(DType dtype, F&& f) {
  if constexpr (std::is_same_v<Type, AnyType>) {
    if (dtype == DType::i8) {
      f(int8_t{});
    } else if (dtype == DType::f16) {
      f(f16{});
    } else if (dtype == DType::bf16) {
      f(bf16{});
    } else {
      f(float{});
    }
  } else {
    f(Type{});
  }
}

// ---- Eight outputs ----

// Channels k .. k + count of a pixel; `count` is 1 to 8.
struct Channels {
  int k, count;
  float scale[8], shift[8];
};

PK_DEVICE Channels channels_at(const Epilogue& e, int k, int count) {
  Channels channels;
  channels.k = k;
  channels.count = count < 8 ? count : 8;
  PK_UNROLL
  for (int i = 0; i < 8; ++i) {
    channels.scale[i] = e.scale && i < channels.count ? e.scale[k + i] : 1.0f;
    channels.shift[i] = e.shift && i < channels.count ? e.shift[k + i] : 0.0f;
  }
  return channels;
}

// Where pixel `row` (n, p, q) begins.
PK_DEVICE int64_t pixel_offset(const Epilogue& e, const int64_t (&stride)[4], int row) {
  if (e.linear) return row * stride[3];
  const int n = row / e.pq, within = row % e.pq;
  return n * stride[0] + within / e.q * stride[2] + within % e.q * stride[3];
}

// The activations of eight values; the switch is outside, so that it costs one branch for all eight.
PK_DEVICE void activate_eight(float (&v)[8], Activation activation, float negative_slope) {
  if (activation == Activation::none) return;
  if (activation == Activation::relu) {
    PK_UNROLL
    for (int i = 0; i < 8; ++i) v[i] = v[i] < 0.0f ? 0.0f : v[i];
    return;
  }
  PK_UNROLL
  for (int i = 0; i < 8; ++i) v[i] = activate(v[i], activation, negative_slope);
}

template <class Type, class Sum>
PK_DEVICE void finish(const Epilogue& e, const Channels& channels, int row, const Sum (&sum)[8]) {
  // Said twice, not kept: an offset that lives through all of this costs reduce_splits a spill.
  const auto y_at = [&] { return pixel_offset(e, e.y_stride, row) + channels.k * e.y_stride[1]; };
  if constexpr (std::is_same_v<Type, AnyType>) {
    if (e.y_dtype == DType::i32) {
      store_sums(static_cast<int32_t*>(e.y) + y_at(), e.y_stride[1], e.vectors, channels.count, sum);
      return;
    }
  }
  float v[8];
  PK_UNROLL
  for (int i = 0; i < 8; ++i) v[i] = static_cast<float>(sum[i]) * channels.scale[i] + channels.shift[i];
  if (e.residual != nullptr) {
    const int64_t at = pixel_offset(e, e.residual_stride, row) + channels.k * e.residual_stride[1];
    with_type<Type>(e.residual_dtype, [&](auto type) {
      using T = decltype(type);
      float residual[8];
      load_channels(static_cast<const T*>(e.residual) + at, e.residual_stride[1], e.vectors, channels.count, residual);
      PK_UNROLL
      for (int i = 0; i < 8; ++i) {
        v[i] += std::is_same_v<Type, AnyType> ? e.residual_scale * residual[i] : residual[i];
      }
    });
  }
  activate_eight(v, e.activation, e.negative_slope);
  if constexpr (std::is_same_v<Type, AnyType>) {
    PK_UNROLL
    for (int i = 0; i < 8; ++i) v[i] *= e.y_scale;
  }
  with_type<Type>(e.y_dtype, [&](auto type) {
    using T = decltype(type);
    store_channels(static_cast<T*>(e.y) + y_at(), e.y_stride[1], e.vectors, channels.count, v);
  });
}

// ---- A tile of sums in shared memory ----

// Rows of kN four-byte sums, in units of four; the units of a row are exchanged so that neither the writes from
// fragments (8 rows x 4 pairs of columns a warp) nor the reads along a row have bank conflicts.
template <int kN>
PK_DEVICE int staged_index(int row, int column) {
  return row * kN + ((column >> 2 ^ (row & 3) << 1) << 2) + (column & 3);
}

template <int kN, class Sum>
PK_DEVICE void read_eight(const Sum* staged, int row, int column, Sum (&sum)[8]) {
  PK_UNROLL
  for (int half = 0; half < 2; ++half) {
    const uint4 four = *reinterpret_cast<const uint4*>(staged + staged_index<kN>(row, column + 4 * half));
    const uint32_t words[4] = {four.x, four.y, four.z, four.w};
    PK_UNROLL
    for (int i = 0; i < 4; ++i) {
      if constexpr (std::is_same_v<Sum, float>) {
        sum[4 * half + i] = __uint_as_float(words[i]);
      } else {
        sum[4 * half + i] = static_cast<Sum>(words[i]);
      }
    }
  }
}

// The staged tile kM x kN to y: its first pixel is `row` of `rows`, its first channel `k`, of which `left` are there.
// Called by kThreads threads, after a barrier that follows the writing of the tile.
template <int kM, int kN, int kThreads, class Type, class Sum>
PK_DEVICE void store_tile(const Epilogue& e, const Sum* staged, int row, int rows, int k, int left) {
  constexpr int kGroups = kN / kChannelsAtOnce;
  const int thread = static_cast<int>(threadIdx.x);
  Sum sum[8];
  if (!e.rows_first) {
    const int column = thread % kGroups * kChannelsAtOnce;
    if (column >= left) return;
    const Channels channels = channels_at(e, k + column, left - column);
    PK_ROLLED
    for (int i = thread / kGroups; i < kM && row + i < rows; i += kThreads / kGroups) {
      read_eight<kN>(staged, i, column, sum);
      finish<Type>(e, channels, row + i, sum);
    }
    return;
  }
  PK_ROLLED
  for (int item = thread; item < kM * kGroups; item += kThreads) {
    const int i = item % kM, column = item / kM * kChannelsAtOnce;
    if (row + i >= rows || column >= left) continue;
    read_eight<kN>(staged, i, column, sum);
    finish<Type>(e, channels_at(e, k + column, left - column), row + i, sum);
  }
}

// The same to partial sums: partial[row][width], from the tile's first column on; `width` is a multiple of 8.
template <int kM, int kN, int kThreads, class Sum>
PK_DEVICE void store_partial(Sum* partial, const Sum* staged, int row, int rows, int first_column, int width) {
  constexpr int kUnits = kN / 4;
  const int thread = static_cast<int>(threadIdx.x), column = thread % kUnits * 4;
  if (first_column + column >= width) return;
  PK_ROLLED
  for (int i = thread / kUnits; i < kM && row + i < rows; i += kThreads / kUnits) {
    *reinterpret_cast<uint4*>(partial + int64_t{row + i} * width + first_column + column) =
        *reinterpret_cast<const uint4*>(staged + staged_index<kN>(i, column));
  }
}

}  // namespace pk::cuda::conv
