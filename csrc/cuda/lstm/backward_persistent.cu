// Launches the persistent backward recurrence (backward_persistent.cuh).
#include "cuda/launch.cuh"
#include "cuda/lstm/backward_kernels.h"
#include "cuda/lstm/backward_persistent.cuh"

namespace pk::cuda::lstm {
namespace {

using namespace backward;

// All fragments of W_hh, for those that are not pinned.
template <class T>
__global__ void __launch_bounds__(kThreads) stream_fragments(BackwardLayer l, int d, uint4* to) {
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * kThreads + static_cast<int>(threadIdx.x);
  write_fragments(l, static_cast<const T*>(l.direction[d].w_hh), l.pitch / 8, 0, l.pitch / 8, reinterpret_cast<T*>(to),
                  thread, static_cast<int64_t>(gridDim.x) * kThreads);
}

template <class T, int kRows, int kUnits>
Status run(Persistent p, const BackwardChoice& c, void* stream) {
  for (int i = 0; i < c.launches; ++i) {
    p.first_sequence = i * c.groups * kRows * 16;
    PK_TRY(launch(backward_steps<T, kRows, kUnits>,
                  {.grid = dim3(static_cast<unsigned>(c.slices), static_cast<unsigned>(c.groups),
                                static_cast<unsigned>(p.layer.directions)),
                   .block = dim3(kThreads),
                   .shared_bytes = c.shared_bytes,
                   .cooperative = true},
                  stream, p));
  }
  return kOk;
}

template <class T>
Status run_type(const BackwardLayer& layer, const BackwardChoice& c, void* workspace, void* stream) {
  Persistent p = {layer, {}, c.pinned, 0};
  if (backward_streams(c, layer.hidden)) {
    const int64_t tiles = layer.pitch / 8, vectors = tiles * tiles * kVectors<T> * kWarp;
    for (int d = 0; d < layer.directions; ++d) {
      uint4* const to = static_cast<uint4*>(workspace) + d * vectors;
      const int64_t blocks = ceil_div<int64_t>(vectors * 16 / static_cast<int64_t>(sizeof(T)), kThreads * 16);
      PK_TRY(launch(stream_fragments<T>, {.grid = dim3(static_cast<unsigned>(blocks)), .block = kThreads}, stream,
                    layer, d, to));
      p.streamed[d] = to;
    }
  }
  const int tiles = c.row_tiles * 10 + c.unit_tiles;
  if (tiles == 11) return run<T, 1, 1>(p, c, stream);
  if (tiles == 12) return run<T, 1, 2>(p, c, stream);
  if (tiles == 14) return run<T, 1, 4>(p, c, stream);
  if (tiles == 21) return run<T, 2, 1>(p, c, stream);
  if (tiles == 22) return run<T, 2, 2>(p, c, stream);
  if (tiles == 41) return run<T, 4, 1>(p, c, stream);
  if constexpr (sizeof(T) == 2) {
    if (tiles == 24) return run<T, 2, 4>(p, c, stream);
    if (tiles == 42) return run<T, 4, 2>(p, c, stream);
  }
  return {"lstm_backward: no persistent kernel with such tiles"};
}

}  // namespace

int64_t backward_persistent_workspace(const LstmShape& s, const BackwardChoice& c) {
  const int64_t tiles = backward_padded(s.hidden) / 8;
  return backward_streams(c, s.hidden) ? s.directions * tiles * tiles * backward_fragment_bytes(s.dtype) : 0;
}

Status backward_persistent_layer(const BackwardLayer& layer, DType dtype, const BackwardChoice& c, void* workspace,
                                 void* stream) {
  return with_type(dtype, [&](auto t) { return run_type<decltype(t)>(layer, c, workspace, stream); });
}

}  // namespace pk::cuda::lstm
