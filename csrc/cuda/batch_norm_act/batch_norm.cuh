// What the batch-norm kernels share: the walk over a tensor, groups of eight elements, sums over a block.
//
// A thread owns one group of a row and strides over rows. Where every group is 16-byte aligned and full (kWhole), it is
// eight neighbours, moved by vectors. Else the lanes of a block interleave: a group is eight elements `step` apart, so
// that neighbours still lie in neighbouring threads. kLast: channels_last, a group's elements are eight channels.
#pragma once

#include "cuda/batch_norm_act/choose.h"
#include "cuda/device.h"
#include "cuda/launch.cuh"
#include "cuda/numeric.cuh"
#include "cuda/platform.cuh"

namespace pk::cuda::bn {

// The slabs as the kernels take them, strides in elements (mask: bytes).
struct Walk {
  int64_t rows, rows_per_slab, row_stride, mask_stride;
  int inner, groups, channels;
};

inline Walk walk_of(const BatchNormShape& s, const Slabs& p) {
  const int64_t row = s.channels_last ? 1 : s.c;
  return {p.rows, p.rows_per_slab, row * p.inner, row * p.groups, p.inner, p.groups, static_cast<int>(s.c)};
}

inline Launch launch_of(const Slabs& p, int shared_bytes = 0) {
  return {.grid = dim3(static_cast<unsigned>(p.columns), static_cast<unsigned>(p.slabs)),
          .block = dim3(p.width, kThreads / p.width),
          .shared_bytes = shared_bytes};
}

template <bool kWhole>
struct Lane {
  int base, step;  // of its elements in a row
  int group;
  bool active;

  PK_DEVICE int element(int j) const { return kWhole ? base + j : base + j * step; }
};

// This thread's group in the `tile`-th stretch of a row. The last stretch may be narrower: then so is its step, and the
// groups of a row are always ceil(inner / 8).
template <bool kWhole>
PK_DEVICE Lane<kWhole> lane_of(const Walk& w, int tile) {
  const int first = tile * static_cast<int>(blockDim.x), x = static_cast<int>(threadIdx.x);
  const int width = min(static_cast<int>(blockDim.x), w.groups - first);
  return {first * kGroup + (kWhole ? x * kGroup : x), width, first + x, x < width};
}

// Where this block's rows begin and end, and what it adds to each row's offset.
template <bool kLast>
struct Slab {
  int64_t begin, end, offset, mask_offset;
  int tiles;

  PK_DEVICE explicit Slab(const Walk& w) {
    begin = blockIdx.y * w.rows_per_slab;
    end = begin + w.rows_per_slab < w.rows ? begin + w.rows_per_slab : w.rows;
    offset = kLast ? 0 : static_cast<int64_t>(blockIdx.x) * w.inner;
    mask_offset = kLast ? 0 : static_cast<int64_t>(blockIdx.x) * w.groups;
    tiles = kLast ? 1 : ceil_div(w.groups, static_cast<int>(blockDim.x));
  }
  PK_DEVICE int tile(int i) const { return kLast ? static_cast<int>(blockIdx.x) : i; }
};

// One value for each element of a group: of its channel (kLast), else of the block's one channel.
template <bool kLast>
struct PerChannel {
  float v[kLast ? kGroup : 1];

  PK_DEVICE float& operator[](int j) { return v[kLast ? j : 0]; }
  PK_DEVICE float operator[](int j) const { return v[kLast ? j : 0]; }
};

// f(channel) for each; 0 where there is no such channel.
template <bool kLast, bool kWhole, class F>
PK_DEVICE PerChannel<kLast> per_channel(const Walk& w, const Lane<kWhole>& lane, F f) {
  PerChannel<kLast> result;
  PK_UNROLL
  for (int j = 0; j < (kLast ? kGroup : 1); ++j) {
    const int channel = kLast ? lane.element(j) : static_cast<int>(blockIdx.x);
    result.v[j] = channel < w.channels ? f(channel) : 0.0f;
  }
  return result;
}

// A group as it lies in memory.
template <class T>
struct Raw {
  static constexpr int kWords = kGroup * sizeof(T) / 4;
  uint32_t w[kWords];

  PK_DEVICE float operator[](int j) const {
    if constexpr (sizeof(T) == 4) {
      return __uint_as_float(w[j]);
    } else {
      return to_float(T{static_cast<uint16_t>(w[j / 2] >> 16 * (j % 2))});
    }
  }
};

PK_DEVICE uint32_t bits_of(float x) { return __float_as_uint(x); }
PK_DEVICE uint32_t bits_of(f16 x) { return x.bits; }
PK_DEVICE uint32_t bits_of(bf16 x) { return x.bits; }

// `row` is the row's first element. Elements behind its end are 0.
template <class T, bool kWhole>
PK_DEVICE Raw<T> load(const T* __restrict__ row, const Lane<kWhole>& lane, int inner) {
  Raw<T> raw;
  if constexpr (kWhole) {
    PK_UNROLL
    for (int i = 0; i < Raw<T>::kWords / 4; ++i) {
      const uint4 q = reinterpret_cast<const uint4*>(row + lane.base)[i];
      raw.w[4 * i] = q.x;
      raw.w[4 * i + 1] = q.y;
      raw.w[4 * i + 2] = q.z;
      raw.w[4 * i + 3] = q.w;
    }
  } else {
    PK_UNROLL
    for (int i = 0; i < Raw<T>::kWords; ++i) raw.w[i] = 0;
    PK_UNROLL
    for (int j = 0; j < kGroup; ++j) {
      const int e = lane.element(j);
      if (e < inner) raw.w[j * sizeof(T) / 4] |= bits_of(row[e]) << (sizeof(T) == 4 ? 0 : 16 * (j % 2));
    }
  }
  return raw;
}

template <class T, bool kWhole>
PK_DEVICE void store(T* __restrict__ row, const Lane<kWhole>& lane, int inner, const float (&v)[kGroup]) {
  if constexpr (kWhole) {
    uint32_t w[Raw<T>::kWords];
    PK_UNROLL
    for (int i = 0; i < Raw<T>::kWords; ++i) {
      if constexpr (sizeof(T) == 4) {
        w[i] = __float_as_uint(v[i]);
      } else {
        w[i] = pack2<T>(v[2 * i], v[2 * i + 1]);
      }
    }
    PK_UNROLL
    for (int i = 0; i < Raw<T>::kWords / 4; ++i) {
      reinterpret_cast<uint4*>(row + lane.base)[i] = make_uint4(w[4 * i], w[4 * i + 1], w[4 * i + 2], w[4 * i + 3]);
    }
  } else {
    PK_UNROLL
    for (int j = 0; j < kGroup; ++j) {
      if (lane.element(j) < inner) row[lane.element(j)] = from_float<T>(v[j]);
    }
  }
}

// The normalisation of a group: z = (x - mean) * scale + bias, with scale = weight / sqrt(var + eps). The subtraction
// comes first, so that a mean that is large against the deviation costs nothing. Forward and backward pass share it to
// the bit, for the sign of z is read from it again.
template <bool kLast>
struct Affine {
  PerChannel<kLast> mean, scale, bias;

  template <bool kWhole>
  PK_DEVICE Affine(const Walk& w, const Lane<kWhole>& lane, const BatchNormActArgs& a) {
    mean = per_channel<kLast>(w, lane, [&](int c) { return a.mean[c]; });
    scale =
        per_channel<kLast>(w, lane, [&](int c) { return inverse_deviation(a, c) * (a.weight ? a.weight[c] : 1.0f); });
    bias = per_channel<kLast>(w, lane, [&](int c) { return a.bias ? a.bias[c] : 0.0f; });
  }
  PK_DEVICE static float inverse_deviation(const BatchNormActArgs& a, int c) { return 1.0f / sqrtf(a.var[c] + a.eps); }
  PK_DEVICE float operator()(float x, int j) const { return fmaf(x - mean[j], scale[j], bias[j]); }
};

// This thread's rows of the slab, kRows at a time: read(u, row) for each, so that all are in flight, then use(u, row).
template <int kRows, bool kLast, class Read, class Use>
PK_DEVICE void for_each_row(const Slab<kLast>& slab, const Read& read, const Use& use) {
  const int height = static_cast<int>(blockDim.y);
  for (int64_t r = slab.begin + threadIdx.y; r < slab.end; r += height * kRows) {
    PK_UNROLL
    for (int u = 0; u < kRows; ++u) {
      if (r + u * height < slab.end) read(u, r + u * height);
    }
    PK_UNROLL
    for (int u = 0; u < kRows; ++u) {
      if (r + u * height < slab.end) use(u, r + u * height);
    }
  }
}

// A thread's values v combined with those of the same x in all other rows y of the block, in a fixed tree; the result
// is in row 0. shared: [kCount * kThreads / 2].
template <int kCount, class V>
PK_DEVICE void combine_rows(V (&v)[kCount], int x, int width, int y, int height, V* shared) {
  for (int half = height / 2; half > 0; half /= 2) {
    V* const mine = shared + (y < half ? y : y - half) * width + x;
    if (y >= half && y < 2 * half) {
      PK_UNROLL
      for (int i = 0; i < kCount; ++i) mine[i * (kThreads / 2)] = v[i];
    }
    __syncthreads();
    if (y < half) {
      PK_UNROLL
      for (int i = 0; i < kCount; ++i) v[i].add(mine[i * (kThreads / 2)]);
    }
    __syncthreads();
  }
}

// Where this block's two sums of each channel go, in (slabs, 2, c): V has them as first() and second(). v: the
// thread's, of each channel of its group (kLast) or of the block's.
template <bool kLast, bool kWhole, class V>
PK_DEVICE void store_sums(const Walk& w, const Slab<kLast>& slab, V (&v)[kLast ? kGroup : 1], float* partial) {
  V* const shared = dynamic_shared<V>();
  const int x = static_cast<int>(threadIdx.x), y = static_cast<int>(threadIdx.y), width = static_cast<int>(blockDim.x);
  float* const to = partial + static_cast<int64_t>(blockIdx.y) * 2 * w.channels;
  if constexpr (kLast) {
    combine_rows(v, x, width, y, static_cast<int>(blockDim.y), shared);
    const Lane<kWhole> lane = lane_of<kWhole>(w, slab.tile(0));
    if (y != 0 || !lane.active) return;
    PK_UNROLL
    for (int j = 0; j < kGroup; ++j) {
      const int c = lane.element(j);
      if (c >= w.channels) continue;
      to[c] = v[j].first();
      to[w.channels + c] = v[j].second();
    }
  } else {
    combine_rows(v, 0, 1, y * width + x, kThreads, shared);
    if (y * width + x != 0) return;
    to[blockIdx.x] = v[0].first();
    to[w.channels + blockIdx.x] = v[0].second();
  }
}

inline bool is_aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

// Calls f(T{}, std::bool_constant kLast, kWhole).
template <bool B>
struct Flag {
  static constexpr bool value = B;
};
template <class F>
Status choose_kernel(DType dtype, bool last, bool whole, F f) {
  const auto layouts = [&](auto element) {
    if (last) return whole ? f(element, Flag<true>{}, Flag<true>{}) : f(element, Flag<true>{}, Flag<false>{});
    return whole ? f(element, Flag<false>{}, Flag<true>{}) : f(element, Flag<false>{}, Flag<false>{});
  };
  return with_type(dtype, layouts);
}

}  // namespace pk::cuda::bn
