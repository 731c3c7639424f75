// quantize_int8 of channels that are no rows: two kernels, both over (channel, part of the channel's numbers). The
// first finds the range of each part; the second joins the parts' ranges, and divides and rounds its own part.
//
// x is (outer, channels, inner). inner > 1: a channel is `outer` runs of `inner` numbers, cut into pieces that the
// warps of its blocks take in turn. inner == 1: a lane a channel, the warps take the outer index in turn. The range is
// a maximum of bit patterns, so the order in which it is found changes nothing.
#include "cuda/int8_matmul/grid.cuh"
#include "cuda/int8_matmul/kernels.h"
#include "cuda/launch.cuh"
#include "pykernels/cuda/int8_matmul.h"

namespace pk::cuda::int8 {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / kWarp;
constexpr int64_t kPiece = 2048;  // numbers that a warp takes at once

struct Channels {
  QuantizeInt8Args p;
  Range* ranges;  // (channels, parts)
  int parts;
  bool chunks;  // runs begin at multiples of 16 bytes
};

// The ranges of all parts of a channel, to every thread of the block.
PK_DEVICE Range joined(const Channels& c, int64_t channel, Range* shared) {
  Range range;
  for (int part = static_cast<int>(threadIdx.x); part < c.parts; part += kThreads) {
    range.add(c.ranges[channel * c.parts + part]);
  }
  range = across_warp(range);
  if (threadIdx.x % kWarp == 0) shared[threadIdx.x / kWarp] = range;
  __syncthreads();
  PK_UNROLL
  for (int w = 0; w < kWarps; ++w) range.add(shared[w]);
  return range;
}

template <class T, bool kApply>
__global__ void __launch_bounds__(kThreads) runs_kernel(Channels c) {
  using Vector = Chunk<T>;
  Range* shared = dynamic_shared<Range>();  // (kWarps)
  const QuantizeInt8Args& p = c.p;
  const int warp = static_cast<int>(threadIdx.x) / kWarp, lane = static_cast<int>(threadIdx.x) % kWarp;
  const int64_t channel = blockIdx.x / c.parts;
  const int part = static_cast<int>(blockIdx.x % c.parts);
  Range range;
  Grid grid = {};
  if constexpr (kApply) {
    grid = grid_of(joined(c, channel, shared), p.symmetric);
    if (part == 0 && threadIdx.x == 0) {
      p.scale[channel] = grid.scale;
      p.zero_point[channel] = grid.zero_point;
    }
  }
  const int64_t pieces_of_run = ceil_div(p.inner, kPiece), pieces = p.outer * pieces_of_run;
  for (int64_t piece = part * kWarps + warp; piece < pieces; piece += c.parts * kWarps) {
    const int64_t run = piece / pieces_of_run, first = piece % pieces_of_run * kPiece;
    const int64_t n = p.inner - first < kPiece ? p.inner - first : kPiece;
    const int64_t at = (run * p.channels + channel) * p.inner + first;
    const T* x = static_cast<const T*>(p.x) + at;
    const int64_t chunks = c.chunks ? n / Vector::kCount : 0;
    for (int64_t i = lane; i < chunks; i += kWarp) {
      Vector v;
      v.load(x + i * Vector::kCount);
      if constexpr (kApply) {
        v.store(p.q + at + i * Vector::kCount, grid, p.symmetric);
      } else {
        v.add_to(range);
      }
    }
    for (int64_t i = chunks * Vector::kCount + lane; i < n; i += kWarp) {
      if constexpr (kApply) {
        p.q[at + i] = on_grid(to_float(x[i]), grid, p.symmetric);
      } else {
        range.add(to_float(x[i]));
      }
    }
  }
  if constexpr (!kApply) {
    range = across_warp(range);
    if (lane == 0) shared[warp] = range;
    __syncthreads();
    if (threadIdx.x != 0) return;
    for (int w = 1; w < kWarps; ++w) range.add(shared[w]);
    c.ranges[channel * c.parts + part] = range;
  }
}

template <class T, bool kApply>
__global__ void __launch_bounds__(kThreads) lanes_kernel(Channels c) {
  Range* shared = dynamic_shared<Range>();  // (kWarps, kWarp)
  const QuantizeInt8Args& p = c.p;
  const int warp = static_cast<int>(threadIdx.x) / kWarp, lane = static_cast<int>(threadIdx.x) % kWarp;
  const int64_t channel = static_cast<int64_t>(blockIdx.x / c.parts) * kWarp + lane;
  const int part = static_cast<int>(blockIdx.x % c.parts);
  const bool there = channel < p.channels;
  const T* x = static_cast<const T*>(p.x);
  Range range;
  if constexpr (kApply) {
    for (int other = warp; there && other < c.parts; other += kWarps) range.add(c.ranges[channel * c.parts + other]);
  } else {
    for (int64_t o = part * kWarps + warp; there && o < p.outer; o += c.parts * kWarps) {
      range.add(to_float(x[o * p.channels + channel]));
    }
  }
  shared[warp * kWarp + lane] = range;
  __syncthreads();
  PK_UNROLL
  for (int w = 0; w < kWarps; ++w) range.add(shared[w * kWarp + lane]);
  if (!there) return;
  if constexpr (kApply) {
    const Grid grid = grid_of(range, p.symmetric);
    if (part == 0 && warp == 0) {
      p.scale[channel] = grid.scale;
      p.zero_point[channel] = grid.zero_point;
    }
    for (int64_t o = part * kWarps + warp; o < p.outer; o += c.parts * kWarps) {
      p.q[o * p.channels + channel] = on_grid(to_float(x[o * p.channels + channel]), grid, p.symmetric);
    }
  } else if (warp == 0) {
    c.ranges[channel * c.parts + part] = range;
  }
}

// One kernel for all: each channel is one run that a block or a warp may have alone.
bool are_rows(const QuantizeInt8Args& p, const Device& device) {
  return p.outer == 1 && p.inner > 1 && (p.channels >= device.multiprocessors || p.inner <= 16 * kPiece);
}

bool are_lanes(const QuantizeInt8Args& p) { return p.inner == 1 && p.channels > 1; }

// Parts of a channel, such that there is a block or two for every multiprocessor and work for every warp.
int parts_of(const QuantizeInt8Args& p, const Device& device) {
  const int64_t groups = are_lanes(p) ? ceil_div<int64_t>(p.channels, kWarp) : p.channels;
  const int64_t turns = are_lanes(p) ? ceil_div<int64_t>(p.outer, 16) : p.outer * ceil_div(p.inner, kPiece);
  const int64_t most = ceil_div<int64_t>(turns, kWarps), wanted = ceil_div<int64_t>(4 * device.multiprocessors, groups);
  return static_cast<int>(most < 1 ? 1 : most < wanted ? most : wanted);
}

template <class T>
Status launch_both(const Channels& c, void* stream) {
  const bool lanes = are_lanes(c.p);
  const int64_t blocks = (lanes ? ceil_div<int64_t>(c.p.channels, kWarp) : c.p.channels) * c.parts;
  if (blocks > INT32_MAX) return {"x: the sizes are too large"};
  const Launch how = {.grid = dim3(static_cast<unsigned>(blocks)),
                      .block = dim3(kThreads),
                      .shared_bytes = static_cast<int>(sizeof(Range)) * (lanes ? kThreads : kWarps)};
  PK_TRY(launch(lanes ? lanes_kernel<T, false> : runs_kernel<T, false>, how, stream, c));
  return launch(lanes ? lanes_kernel<T, true> : runs_kernel<T, true>, how, stream, c);
}

}  // namespace

void plan_quantize(const Device& device, QuantizeInt8Plan* plan) {
  const QuantizeInt8Args& p = plan->args;
  plan->parts = are_rows(p, device) ? 0 : parts_of(p, device);
  plan->workspace_bytes = static_cast<int64_t>(sizeof(Range)) * p.channels * plan->parts;
}

Status quantize(const QuantizeInt8Plan& plan, void* workspace, void* stream) {
  const QuantizeInt8Args& p = plan.args;
  if (plan.parts == 0) {
    return quantize_rows(p.x_dtype, p.x, p.channels, p.inner, p.inner, p.symmetric, p.q, p.inner, p.scale, p.zero_point,
                         stream);
  }
  const int64_t run_bytes = p.inner * static_cast<int64_t>(size_of(p.x_dtype));
  const int64_t q_chunk = 16 / static_cast<int64_t>(size_of(p.x_dtype));
  const bool whole = p.outer * p.channels == 1;  // one run, of any length
  const Channels c = {p, static_cast<Range*>(workspace), plan.parts,
                      (whole || run_bytes % 16 == 0) && reinterpret_cast<uintptr_t>(p.x) % 16 == 0 &&
                          reinterpret_cast<uintptr_t>(p.q) % q_chunk == 0};
  return with_type(p.x_dtype, [&](auto t) { return launch_both<decltype(t)>(c, stream); });
}

}  // namespace pk::cuda::int8
