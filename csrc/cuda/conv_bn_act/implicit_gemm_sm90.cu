// The implicit GEMM on Hopper, for f16, bf16 and int8: rows are pixels (n, p, q), columns filters, and a k tile is 128
// bytes of channels of one tap (r, s).
//
// TMA in im2col mode brings a tap's pixels: the map holds padding and stride, the offsets are the tap's, and what lies
// beside the image is zeros. No thread computes an address. Weights come by a map of three dimensions (filter, tap,
// channel), so that a tap's last, partial k tile ends in zeros on both sides. The product is gemm/mainloop_sm90.cuh,
// the epilogue that of the other implicit GEMMs.
#include "cuda/conv_bn_act/implicit_gemm.cuh"
#include "cuda/gemm/mainloop_sm90.cuh"
#include "cuda/tensor_map.h"

namespace pk::cuda::conv {
namespace {

// The rows of a tile of pixels, for any k tile.
template <class T>
struct TapPixels {
  const Gemm& g;
  const TensorMap* map;
  int row;              // the first
  int n, h, w;          // its base pixel
  int chunks, first_c;  // k tiles of a tap; the group's first channel

  PK_DEVICE TapPixels(const Gemm& gemm, const TensorMap* tensor, int first_row, int group)
      : g(gemm), map(tensor), row(first_row), chunks(ceil_div(gemm.padded_c, T::kK)), first_c(group * gemm.padded_c) {
    const int pq = g.p * g.q, within = row % pq;
    n = row / pq;
    h = within / g.q * g.stride_h - g.pad_top;
    w = within % g.q * g.stride_w - g.pad_left;
  }
  PK_DEVICE void operator()(void* shared, uint64_t* barrier, int k_tile) const {
    const int tap = k_tile / chunks, c = first_c + k_tile % chunks * T::kK;
    if (g.plain) {
      ptx::tma_load_2d(shared, map, barrier, c, row);
    } else {
      ptx::tma_load_im2col_4d(shared, map, barrier, c, w, h, n, static_cast<uint16_t>(tap % g.s * g.dilation_w),
                              static_cast<uint16_t>(tap / g.s * g.dilation_h));
    }
  }
};

template <class T>
struct TapFilters {
  const TensorMap* map;
  int filter, chunks;

  PK_DEVICE void operator()(void* shared, uint64_t* barrier, int k_tile, int part, uint16_t blocks) const {
    const int tap = k_tile / chunks, c = k_tile % chunks * T::kK;
    if constexpr (T::kCluster > 1) {
      ptx::tma_load_3d_multicast(shared, map, barrier, c, tap, filter + part, blocks);
    } else {
      ptx::tma_load_3d(shared, map, barrier, c, tap, filter + part);
    }
  }
};

template <class T, class Type>
__global__ void __launch_bounds__(T::kThreads, T::kBlocks)
    implicit_gemm_wgmma(const __grid_constant__ Gemm g, const __grid_constant__ TensorMap pixels,
                        const __grid_constant__ TensorMap filters) {
#if PK_HAS_SM90A
  using Sum = typename T::Sum;
  static_assert(T::kM * T::kN * 4 <= T::kFreeBytes);
  // As in implicit_gemm, but blocks of a cluster are neighbours in pixels.
  unsigned block = blockIdx.x / T::kCluster;
  const int block_n = static_cast<int>(block % g.blocks_n);
  block /= g.blocks_n;
  const int pairs = ceil_div(g.blocks_m, T::kCluster);
  const int block_m = static_cast<int>(block % pairs * T::kCluster + blockIdx.x % T::kCluster);
  block /= pairs;
  const int group = static_cast<int>(block % g.groups), split = static_cast<int>(block / g.groups);
  const int first_row = block_m * T::kM, first_filter = block_n * T::kN;

  const TapPixels<T> load_pixels(g, &pixels, first_row, group);
  const TapFilters<T> load_filters = {&filters, group * g.filters + first_filter, load_pixels.chunks};
  const int first = split * g.split_steps, left = g.steps - first;
  char* const shared = dynamic_shared<char>();
  gemm::wgmma_mainloop<T>(
      load_pixels, load_filters, first, left < g.split_steps ? left : g.split_steps, shared,
      [&](const typename T::Accumulator& acc) {
        Sum* const staged = reinterpret_cast<Sum*>(shared);
        gemm::for_each_wgmma_pair<T>(acc, [&](int row, int column, Sum v0, Sum v1) {
          Sum* const pair = staged + staged_index<T::kN>(row, column);
          pair[0] = v0;
          pair[1] = v1;
        });
        ptx::barrier_sync(1, T::kConsumers);
        if (g.partial == nullptr) {
          store_tile<T::kM, T::kN, T::kConsumers, Type>(g.epilogue, staged, first_row, g.rows,
                                                        group * g.filters + first_filter, g.filters - first_filter);
          if constexpr (!std::is_same_v<Type, AnyType>) {
            if (g.moments != nullptr && first_row < g.rows) {  // a cluster's last block may have no pixels
              store_statistics<T::kM, T::kN, T::kConsumers, Type>(
                  g.epilogue, staged, first_row, g.rows, group * g.filters + first_filter, g.filters - first_filter,
                  g.moments, g.groups * g.filters, [] { ptx::barrier_sync(1, T::kConsumers); });
            }
          }
        } else {
          const int width = ceil_div(g.filters, kChannelsAtOnce) * kChannelsAtOnce;
          Sum* const partial = static_cast<Sum*>(g.partial) + (int64_t{split} * g.groups + group) * g.rows * width;
          store_partial<T::kM, T::kN, T::kConsumers>(partial, staged, first_row, g.rows, first_filter, width);
        }
      });
#endif
}

template <class T>
Status make_maps(const Gemm& g, TensorMap* pixels, TensorMap* filters) {
  using E = typename T::Element;
  constexpr int64_t kUnit = 16 / sizeof(E);
  // The stride of a size of 1 is of no account, but TMA wants one.
  const auto stride = [](int64_t stride, int64_t size) { return size == 1 ? kUnit : stride; };
  const int64_t images = g.rows / (g.p * g.q), channels = int64_t{g.groups} * g.padded_c;
  Status status = kOk;
  if (g.plain) {
    status = make_tensor_map(matrix_view(g.x, kDType<E>, g.rows, channels, g.x_stride_w, T::kM, T::kK), pixels);
  } else {
    Im2colView view;
    view.data = g.x;
    view.dtype = kDType<E>;
    view.n = images, view.h = g.h, view.w = g.w, view.c = channels;
    view.stride_n = stride(g.x_stride_n, images);
    view.stride_h = stride(g.x_stride_h, g.h);
    view.stride_w = stride(g.x_stride_w, g.w);
    view.p = g.p, view.q = g.q;
    view.pad_top = g.pad_top, view.pad_left = g.pad_left;
    view.step_h = g.stride_h, view.step_w = g.stride_w;
    view.pixels = T::kM, view.channels = T::kK;
    status = make_tensor_map(view, pixels);
  }
  if (!status) return status;
  TiledView view;
  view.data = g.weight;
  view.dtype = kDType<E>;
  view.rank = 3;
  view.size[0] = g.padded_c, view.size[1] = g.end_h / g.dilation_h * g.s, view.size[2] = int64_t{g.groups} * g.filters;
  view.stride[0] = 1, view.stride[1] = g.padded_c, view.stride[2] = g.columns;
  view.box[0] = T::kK, view.box[1] = 1, view.box[2] = T::kN / T::kCluster;
  view.swizzle = Swizzle::b128;
  return make_tensor_map(view, filters);
}

template <class T, class Type>
Status run_tile_sm90(const Gemm& g, void* stream) {
  TensorMap pixels, filters;
  PK_TRY(make_maps<T>(g, &pixels, &filters));
  const int64_t pairs = ceil_div(g.blocks_m, T::kCluster);
  const auto blocks = static_cast<unsigned>(pairs * T::kCluster * g.blocks_n * g.groups * g.splits);
  const Status status =
      launch(implicit_gemm_wgmma<T, Type>,
             {.grid = blocks, .block = T::kThreads, .shared_bytes = T::kSharedBytes, .cluster = T::kCluster}, stream, g,
             pixels, filters);
  if (!status || g.partial == nullptr) return status;
  return run_reduce<Type, typename T::Sum, 90>(g, stream);
}

template <class E, class Type>
Status run_math_sm90(const Gemm& g, Tile tile, void* stream) {
  switch (tile) {
    case Tile::w128x64:
      return run_tile_sm90<gemm::WgmmaTile<E, 64, 4>, Type>(g, stream);
    case Tile::w128x128:
      return run_tile_sm90<gemm::WgmmaTile<E, 128, 3>, Type>(g, stream);
    case Tile::w128x256:
      return run_tile_sm90<gemm::WgmmaTile<E, 256, 4, 2>, Type>(g, stream);
    default:
      return {"no such tile"};
  }
}

}  // namespace

Status run_gemm_sm90(const Gemm& gemm, Math math, Tile tile, void* stream) {
  switch (math) {
    case Math::f16:
      return run_math_sm90<f16, f16>(gemm, tile, stream);
    case Math::bf16:
      return run_math_sm90<bf16, bf16>(gemm, tile, stream);
    case Math::i8:
      return run_math_sm90<int8_t, AnyType>(gemm, tile, stream);
    default:
      return {"dtype: wgmma has no such arithmetic here"};
  }
}

}  // namespace pk::cuda::conv
