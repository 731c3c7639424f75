// Winograd convolution F(m x m, 3 x 3), m = 4 or 2: 3 x 3 filters, stride 1, dilation 1, any groups.
//
//   y = A^T [ (G g G^T) * (B^T d B) ] A     d: (m+2) x (m+2) inputs, g: the filter, y: m x m outputs, * by element
//
// Summed over input channels, the product at each of the (m+2)^2 positions is a matrix product, tiles x channels times
// channels x output channels: 4 (m = 4) or 2.25 (m = 2) times fewer multiplications than direct convolution. The
// interpolation points are 0, +-sqrt(1/2), +-sqrt(2), infinity, and 0, +-1, infinity (Lavin & Gray 2016; for the
// points, Barabasz et al. 2020). Sums are cut into slices of channels, which keeps the error of F(4, 3) at 7e-7 of the
// result in L2, whatever the number of channels.
//
// Nothing but y leaves the cache. Blocking, from the outside in:
//
//   threads: tiles x panels   panel: kPanel output channels of one group
//   block of tiles, group     transformed once, u: [position][tile][channel], about half of L2
//   group of panels           their products, m: [panel][position][tile][output channel], a quarter of L2
//   position, panel           weight: a contiguous [channel][output channel], in L1 while all tiles of the block use it
//   tiles                     kTilePixels of them in registers
//
// and then, for each tile and panel, the inverse transform and the epilogue in registers.
//
// A non-finite input, or an overflow in the transforms, would spread to all outputs of a tile. Such tiles are done
// again directly, from the plain weight that lies behind the transformed one, so that NaN and infinity reach the same
// outputs as in direct convolution.
//
// Weight: [group][panel][position][channel][output channel of the panel], then [group][panel][tap][channel][output
// channel], the last panel of a group one vector wide where that is enough.
#include "cpu/conv_bn_act/nhwc.h"
#include "cpu/conv_bn_act/winograd_product.h"
#include "cpu/conv_bn_act/winograd_windows.h"

namespace pk {
namespace PK_ISA {
namespace {

constexpr int64_t kAhead = 1024;  // floats, at least, from a weight in use to what is fetched, of one panel

template <class F>
int64_t packed_floats(const ConvShape& shape) {
  const Form form(shape);
  return form.groups * form.k_padded * form.c * (kPositions<F> + kTaps);
}

template <class F, class Load>
void pack_as(const ConvShape& shape, const ConvTensor& weight, float* packed, const Executor& executor, Load value) {
  const Form form(shape);
  float* plain = packed + form.groups * form.k_padded * form.c * kPositions<F>;
  parallel_for(executor, 0, form.groups * form.panels * form.c, 1 + 16384 / (kPositions<F> * kPanel),
               [&](int64_t begin, int64_t end) {
                 for (int64_t job = begin; job < end; ++job) {
                   const int64_t panel = job / form.c, c = job % form.c, row = form.panel_width(panel);
                   const int64_t k0 = form.first_channel(panel), channels = form.channels(panel);
                   const int64_t at_panel = form.padded_channel(panel) * form.c;
                   float taps[kTaps * kPanel];
                   for (int64_t lane = 0; lane < row; ++lane) {
                     const int64_t from = (k0 + lane) * weight.stride[0] + c * weight.stride[1];
                     for (int tap = 0; tap < kTaps; ++tap) {
                       const int64_t at = from + tap / 3 * weight.stride[2] + tap % 3 * weight.stride[3];
                       taps[tap * kPanel + lane] = lane < channels ? value(at) : 0.0f;
                     }
                   }
                   for (int64_t lane = 0; lane < row; lane += kLanes) {
                     float* out = packed + at_panel * kPositions<F> + c * row + lane;
                     float* plain_out = plain + at_panel * kTaps + c * row + lane;
                     F32 half[3][F::kIn], all[F::kIn];
                     for (int s = 0; s < 3; ++s) {
                       F32 g[3];
                       for (int r = 0; r < 3; ++r) {
                         g[r] = load<F32>(taps + (r * 3 + s) * kPanel + lane);
                         store(plain_out + (r * 3 + s) * form.c * row, g[r]);
                       }
                       F::weight(g, half[s]);
                     }
                     for (int i = 0; i < F::kIn; ++i) {
                       const F32 g[3] = {half[0][i], half[1][i], half[2][i]};
                       F::weight(g, all);
                       for (int j = 0; j < F::kIn; ++j) store(out + (i * F::kIn + j) * form.c * row, all[j]);
                     }
                   }
                 }
               });
}

template <class F>
void pack(const ConvShape& shape, DType dtype, const ConvTensor& weight, float* packed, const Executor& executor) {
  if (dtype == DType::f32) {
    const auto* p = static_cast<const float*>(weight.data);
    pack_as<F>(shape, weight, packed, executor, [p](int64_t at) { return p[at]; });
  } else {
    const auto* p = static_cast<const bf16_t*>(weight.data);
    pack_as<F>(shape, weight, packed, executor, [p](int64_t at) { return widen(p[at]); });
  }
}

template <class F>
int64_t make_plan(const ConvArgs& args, int threads, void* blocking) {
  static_assert(sizeof(Plan<F>) <= kConvBlockingBytes);
  const Plan<F> plan(args, threads);
  std::memcpy(blocking, &plan, sizeof plan);
  return plan.copy_bytes + plan.zero_bytes + plan.threads * plan.slot_bytes;
}

// Tiles [begin, end) of the images in work x panels [panel_begin, panel_end).
template <class F>
void run_part(const ConvArgs& args, const Plan<F>& plan, const Source& source, const Epilogue& epilogue,
              const float* weight, int64_t begin, int64_t end, int64_t panel_begin, int64_t panel_end, char* slot) {
  auto* u = reinterpret_cast<float*>(slot);
  auto* windows = reinterpret_cast<Window<F>*>(slot + plan.u_bytes);
  auto* m = reinterpret_cast<float*>(slot + plan.u_bytes + plan.window_bytes);
  const float* plain = weight + plan.groups * plan.k_padded * plan.c * kPositions<F>;
  const int64_t m_panel = kPositions<F> * plan.m_plane;
  const auto weight_of = [&](int64_t panel, int64_t position) {
    return weight + (plan.padded_channel(panel) * kPositions<F> + position * plan.panel_width(panel)) * plan.c;
  };
  const int64_t blocks = ceil_div(end - begin, plan.block);
  for (int64_t b = 0; b < blocks; ++b) {
    const int64_t from = begin + b * (end - begin) / blocks, count = begin + (b + 1) * (end - begin) / blocks - from;
    for (int64_t i = 0; i < count; ++i) look(args, plan, source, from + i, windows + i);
    for (int64_t g0 = panel_begin, g1; g0 < panel_end; g0 = g1) {
      const int64_t first = g0 / plan.panels * plan.c;  // channel of the group
      g1 = min(min(g0 + plan.panel_group, panel_end), (g0 / plan.panels + 1) * plan.panels);
      if (g0 == panel_begin || g0 % plan.panels == 0) {
        for (int64_t i = 0; i < count; ++i) {
          transform_input(windows[i], windows[min(i + 1, count - 1)], first, plan.c, u + i * plan.row, plan.u_plane);
        }
      }
      for (int64_t position = 0; position < kPositions<F>; ++position) {
        for (int64_t panel = g0; panel < g1; ++panel) {
          const int64_t row = plan.panel_width(panel);
          const Products products = products_of(plan.c, row);
          const int64_t parts = ceil_div(count, products.most), step = ceil_div(row, parts);
          const float* w = weight_of(panel, position);
          const float* next = plan.panels == 1               ? w + max(kAhead, plan.c * row)
                              : panel + 1 < g1               ? weight_of(panel + 1, position)
                              : position + 1 < kPositions<F> ? weight_of(g0, position + 1)
                                                             : weight_of(g1 < panel_end ? g1 : panel_begin, 0);
          float* sums = m + (panel - g0) * m_panel + position * plan.m_plane;
          for (int64_t part = 0; part < parts; ++part) {
            const int64_t tile = part * count / parts, size = (part + 1) * count / parts - tile;
            products.of[size - 1](u + position * plan.u_plane + tile * plan.row, plan.row, plan.c, w, sums + tile * row,
                                  next + part * step * plan.c, step);
          }
        }
      }
      for (int64_t i = 0; i < count; ++i) {
        const Window<F>& window = windows[i];
        for (int64_t panel = g0; panel < g1; ++panel) {
          const int64_t row = plan.panel_width(panel), k0 = plan.first_channel(panel), lanes = plan.channels(panel);
          prefetch_outputs(args, epilogue, windows[min(i + 1, count - 1)], k0);
          const float* tile = m + (panel - g0) * m_panel + i * row;
          if (!finish_window(args, epilogue, window, tile, plan.m_plane, row, k0, lanes)) {
            const float* taps = plain + plan.padded_channel(panel) * plan.c * kTaps;
            direct_tile(args, epilogue, window, first, plan.c, taps, row, k0, lanes);
          }
        }
      }
    }
  }
}

// How `threads` share tiles x panels: `rows` * `columns` parts. The fewest operations for the slowest; each part
// transforms its tiles itself and reads its share of the weight.
template <class F>
void split(const Plan<F>& plan, int64_t tiles, int64_t* rows, int64_t* columns) {
  double best = 0;
  *rows = *columns = 1;
  const int64_t panels = plan.groups * plan.panels;
  for (int64_t by_panel = 1; by_panel <= min(plan.threads, panels); ++by_panel) {
    const int64_t by_tile = max(1, min(plan.threads / by_panel, tiles));
    const auto part_tiles = static_cast<double>(ceil_div(tiles, by_tile));
    const auto part_panels = static_cast<double>(ceil_div(panels, by_panel));
    const auto part_groups = static_cast<double>(ceil_div(ceil_div(panels, by_panel), plan.panels));
    const auto c = static_cast<double>(plan.c);
    // In cycles for a position and channel: a product of vectors every half cycle, 16 bytes of weight a cycle, two
    // vectors of a transformed tile a cycle.
    const double cost =
        c * (part_tiles * part_panels + part_panels * kPanel / 4 + part_tiles * part_groups * 2 / kLanes);
    if (best == 0 || cost < best) best = cost, *rows = by_tile, *columns = by_panel;
  }
}

template <class F>
void run(const void* blocking, const ConvArgs& args, const float* weight, char* workspace, const Executor& executor) {
  const ConvShape& shape = args.shape;
  const auto& plan = *static_cast<const Plan<F>*>(blocking);
  auto* copy = reinterpret_cast<float*>(workspace);
  auto* zeros = reinterpret_cast<float*>(workspace + plan.copy_bytes);
  char* slots = workspace + plan.copy_bytes + plan.zero_bytes;
  std::memset(zeros, 0, static_cast<size_t>(plan.zero_bytes));
  const Epilogue epilogue = make_epilogue(args);
  for (int64_t n = 0; n < shape.n; n += plan.images) {
    const int64_t images = min(plan.images, shape.n - n);
    Source source = {static_cast<const float*>(args.x.data) + (plan.copied ? 0 : n * args.x.stride[0]),
                     args.x.stride[0],
                     args.x.stride[2],
                     args.x.stride[3],
                     zeros,
                     n};
    if (plan.copied) {
      to_nhwc(copy, shape.c, args.x, args.dtype, n, images, shape, executor);
      source = {copy, shape.h * shape.w * shape.c, shape.w * shape.c, shape.c, zeros, n};
    }
    const int64_t tiles = images * plan.tiles_h * plan.tiles_w;
    const int64_t panels = plan.groups * plan.panels;
    int64_t rows, columns;
    split(plan, tiles, &rows, &columns);
    parallel_for(executor, 0, rows * columns, 1, [&](int64_t begin, int64_t end) {
      for (int64_t part = begin; part < end; ++part) {
        const int64_t row = part / columns, column = part % columns;
        run_part(args, plan, source, epilogue, weight, row * tiles / rows, (row + 1) * tiles / rows,
                 column * panels / columns, (column + 1) * panels / columns, slots + part * plan.slot_bytes);
      }
    });
  }
}

}  // namespace

extern const ConvMethod conv_winograd4, conv_winograd2;
const ConvMethod conv_winograd4 = {packed_floats<F4>, pack<F4>, make_plan<F4>, run<F4>};
const ConvMethod conv_winograd2 = {packed_floats<F2>, pack<F2>, make_plan<F2>, run<F2>};

}  // namespace PK_ISA
}  // namespace pk
