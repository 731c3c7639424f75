// What surrounds the recurrence: packing weights, the first states, the slots of the exchange, the rows of packed
// sequences. All of it moves bytes once.
#include "cuda/launch.cuh"
#include "cuda/lstm/kernels.h"
#include "cuda/numeric.cuh"

namespace pk::cuda::lstm {
namespace {

constexpr int kStateThreads = 256;

// Blocks for n elements, a few each; the kernels stride over the grid.
dim3 grid_for(int64_t n, int count = 1) {
  const int64_t blocks = ceil_div(n, int64_t{4} * kStateThreads);
  return dim3(static_cast<unsigned>(blocks < 1 ? 1 : blocks > 4096 ? 4096 : blocks), 1, static_cast<unsigned>(count));
}
PK_DEVICE int64_t first_element() { return static_cast<int64_t>(blockIdx.x) * kStateThreads + threadIdx.x; }
PK_DEVICE int64_t element_stride() { return static_cast<int64_t>(gridDim.x) * kStateThreads; }

template <class T>
PK_DEVICE uint32_t bits_of(T x) {
  if constexpr (sizeof(T) == 4) {
    return __float_as_uint(x);
  } else {
    return x.bits;
  }
}

template <class T>
__global__ void __launch_bounds__(kStateThreads) prepare_kernel(const __grid_constant__ Prepares call) {
  constexpr int kWordElements = 4 / sizeof(T);
  const Prepare& p = call.of[blockIdx.z];
  const int64_t slot_words = call.batch * call.words;
  for (int64_t i = first_element(); i < p.count * slot_words; i += element_stride()) {
    const int64_t slot = i / slot_words, b = i % slot_words / call.words, unit = i % call.words * kWordElements;
    uint32_t word = 0;
    if (unit < call.hidden) {
      if (slot >= p.filled) {
        word = kUnwritten;
      } else {
        const T* from = static_cast<const T*>(p.h_from) + b * call.hidden + unit;
        // No word of h may look unwritten, whatever NaN the caller's h is.
        PK_UNROLL
        for (int e = 0; e < kWordElements; ++e) {
          if (unit + e >= call.hidden) continue;
          const float h = to_float(from[e]);
          word |= bits_of(h == h ? from[e] : from_float<T>(__uint_as_float(0x7fc00000u))) << (e * 16);
        }
      }
    }
    p.slots[i] = word;
  }
  if (!p.h0) return;
  for (int64_t i = first_element(); i < call.batch * call.hidden; i += element_stride()) {
    p.c[i] = to_float(static_cast<const T*>(p.c0)[i]);
    static_cast<T*>(p.h_n)[i] = static_cast<const T*>(p.h0)[i];
  }
}

struct Starts {
  static constexpr int kMost = 384;  // kernel arguments hold 4 KB
  int64_t* to;
  int count;
  int64_t values[kMost];
};
__global__ void __launch_bounds__(kStateThreads) starts_kernel(const __grid_constant__ Starts call) {
  for (int i = static_cast<int>(threadIdx.x); i < call.count; i += kStateThreads) call.to[i] = call.values[i];
}

struct Pack {
  const void* from;  // (4h, k)
  void* to;          // (h, 4, padded)
  int64_t hidden, k, padded;
};
template <class T>
__global__ void __launch_bounds__(kStateThreads) pack_kernel(const Pack call) {
  for (int64_t i = first_element(); i < 4 * call.hidden * call.padded; i += element_stride()) {
    const int64_t row = i / call.padded, k = i % call.padded;
    static_cast<T*>(call.to)[i] = k < call.k
                                      ? static_cast<const T*>(call.from)[(row % 4 * call.hidden + row / 4) * call.k + k]
                                      : from_float<T>(0.0f);
  }
}

struct PackBias {
  const void* b_ih;  // (4h), or nullptr
  const void* b_hh;
  float* to;  // (h, 4)
  int64_t hidden;
};
template <class T>
__global__ void __launch_bounds__(kStateThreads) pack_bias_kernel(const PackBias call) {
  for (int64_t i = first_element(); i < 4 * call.hidden; i += element_stride()) {
    const int64_t from = i % 4 * call.hidden + i / 4;
    call.to[i] =
        call.b_ih ? to_float(static_cast<const T*>(call.b_ih)[from]) + to_float(static_cast<const T*>(call.b_hh)[from])
                  : 0.0f;
  }
}

}  // namespace

Status prepare(DType dtype, const Prepares& call, void* stream) {
  int64_t most = call.batch * call.hidden;
  for (int i = 0; i < call.count; ++i) {
    const int64_t words = call.of[i].count * call.batch * call.words;
    most = words > most ? words : most;
  }
  const Launch how = {.grid = grid_for(most, call.count), .block = dim3(kStateThreads)};
  return with_type(dtype, [&](auto t) { return launch(&prepare_kernel<decltype(t)>, how, stream, call); });
}

Status write_starts(const LstmShape& shape, int64_t* starts, void* stream) {
  for (int64_t t = 0; t <= shape.steps;) {
    Starts call = {starts + t, 0, {}};
    while (call.count < Starts::kMost && t <= shape.steps) call.values[call.count++] = shape.starts[t++];
    PK_TRY(launch(&starts_kernel, {.block = dim3(kStateThreads)}, stream, call));
  }
  return kOk;
}

Status pack(DType dtype, const void* from, void* to, int64_t hidden, int64_t k, int64_t padded, void* stream) {
  const Pack call = {from, to, hidden, k, padded};
  const Launch how = {.grid = grid_for(4 * hidden * padded), .block = dim3(kStateThreads)};
  return with_type(dtype, [&](auto t) { return launch(&pack_kernel<decltype(t)>, how, stream, call); });
}

Status pack_bias(DType dtype, const void* b_ih, const void* b_hh, float* to, int64_t hidden, void* stream) {
  const PackBias call = {b_ih, b_hh, to, hidden};
  const Launch how = {.grid = grid_for(4 * hidden), .block = dim3(kStateThreads)};
  return with_type(dtype, [&](auto t) { return launch(&pack_bias_kernel<decltype(t)>, how, stream, call); });
}

}  // namespace pk::cuda::lstm
