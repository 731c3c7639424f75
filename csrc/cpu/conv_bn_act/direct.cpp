// Direct convolution as an indirect matrix product: output pixels x output channels, summed over taps x channels.
//
// For every output pixel and tap a pointer leads to the channels of one pixel of x (float32, channels adjacent), or to
// zeros for padding; so stride, dilation, padding and any row pitch cost nothing in the inner loop, and nothing is
// copied that lies well already. A tap that meets nothing but padding in a tile is left out, unless the weight has an
// infinity or NaN, which times zero is NaN: other tiles would show it. Blocking, from the outside in:
//
//   threads: pixels x panels       panel: kPanel output channels of one group
//   block of pixels                its part of x stays in L2; its pointers are worked out once
//   group of panels                its partial sums stay in L2
//   slice of input channels        a panel's slice of the weight stays in L1 while all tiles of the block use it
//   panel, tile                    tile.h
//
// A 1 x 1 convolution whose maps outweigh its weight has the last two the other way round: a group of panels, which
// stays in L2, for each tile, all channels at once. x, y and the residual then pass by once, in order, a tile ahead of
// their use; panel by panel every pixel's row was visited once a panel, 64 bytes at a time.
//
// A 1 x 1 convolution of planes, as in NCHW, goes by planes.h where the weight is small. Others gather a block's x
// beside each other first, where it has to be widened or turned over, or where so many pixels lie a multiple of 2 KB
// apart that a tile's compete for one set of L1.
//
// Weight: [group][panel][slice][tap][channel][output channel of the panel], the last panel of a group no wider than is
// needed; then kConvAlign bytes that begin with 1 if all of it is finite.
#include "cpu/conv_bn_act/chain.h"
#include "cpu/conv_bn_act/direct_points.h"

namespace pk {
namespace PK_ISA {
namespace {

int64_t packed_floats(const ConvShape& shape) { return Form(shape).group_floats * shape.groups + kConvAlign / 4; }

inline bool is_finite(const float* values, int64_t count) {
  bool found = false;
  for (int64_t i = 0; i < count; ++i) found |= values[i] - values[i] != 0;
  return !found;
}

// Output channels [first, first + kLanes) of a panel, or fewer, all taps of a slice: out[(tap * run + c) * row + lane].
template <class T>
void pack_lanes(const ConvShape& shape, const T* from, const ConvTensor& weight, int64_t lanes, int64_t run,
                int64_t row, int64_t first, float* out) {
  const int64_t taps = shape.r * shape.s;
  // Rows of the transposition are output channels; along its columns the weight is adjacent.
  if (lanes == kLanes && weight.stride[1] == 1) {
    for (int64_t tap = 0; tap < taps; ++tap) {
      const int64_t at = tap / shape.s * weight.stride[2] + tap % shape.s * weight.stride[3];
      float* to = out + (tap * run - 1) * row;
      transpose_rows(from + at, weight.stride[0], run, [&] { return to += row; });
    }
    return;
  }
  if (lanes == kLanes && weight.stride[3] == 1 && weight.stride[2] == shape.s && weight.stride[1] == taps) {
    int64_t tap = 0, c = 0;
    transpose_rows(from, weight.stride[0], taps * run, [&] {
      float* to = out + (tap * run + c) * row;
      if (++tap == taps) tap = 0, ++c;
      return to;
    });
    return;
  }
  for (int64_t tap = 0; tap < taps; ++tap) {
    const int64_t at = tap / shape.s * weight.stride[2] + tap % shape.s * weight.stride[3];
    for (int64_t c = 0; c < run; ++c) {
      float* to = out + (tap * run + c) * row;
      for (int64_t lane = 0; lane < min(kLanes, row - first); ++lane) {
        to[lane] = lane < lanes ? widen(from[at + c * weight.stride[1] + lane * weight.stride[0]]) : 0.0f;
      }
    }
  }
}

template <class T>
void pack_as(const ConvShape& shape, const T* data, const ConvTensor& weight, float* packed, const Executor& executor) {
  const Form form(shape);
  const int64_t jobs = shape.groups * form.panels * form.slices;
  float* const all_finite = packed + form.group_floats * shape.groups;
  std::memset(all_finite, 0, kConvAlign);
  *all_finite = 1;
  parallel_for(executor, 0, jobs, 1 + 32768 / (form.taps * form.run * kPanel), [&](int64_t begin, int64_t end) {
    for (int64_t job = begin; job < end; ++job) {
      const int64_t slice = job % form.slices, panel = job / form.slices % form.panels;
      const int64_t group = job / form.slices / form.panels;
      const int64_t c0 = slice * form.run, run = min(form.run, form.c - c0);
      const int64_t k0 = panel * kPanel, row = form.panel_width(panel);
      float* out = packed + group * form.group_floats + k0 * form.taps * form.c + c0 * form.taps * row;
      for (int64_t lane = 0; lane < row; lane += kLanes) {
        const int64_t from = (group * form.k + k0 + lane) * weight.stride[0] + c0 * weight.stride[1];
        pack_lanes(shape, data + from, weight, min(kLanes, form.k - k0 - lane), run, row, lane, out + lane);
      }
      const float no = 0;
      if (form.taps > 1 && !is_finite(out, form.taps * run * row)) __atomic_store(all_finite, &no, __ATOMIC_RELAXED);
    }
  });
}

void pack(const ConvShape& shape, DType dtype, const ConvTensor& weight, float* packed, const Executor& executor) {
  if (dtype == DType::f32) {
    pack_as(shape, static_cast<const float*>(weight.data), weight, packed, executor);
  } else {
    pack_as(shape, static_cast<const bf16_t*>(weight.data), weight, packed, executor);
  }
}

static_assert(sizeof(Plan) <= kConvBlockingBytes);

int64_t make_plan(const ConvArgs& args, int threads, void* blocking) {
  const Plan plan(args, threads);
  std::memcpy(blocking, &plan, sizeof plan);
  return plan.copy_bytes + plan.zero_bytes + plan.threads * plan.slot_bytes;
}

const float* weight_at(const Plan& plan, const float* weight, int64_t at, int64_t slice) {
  const int64_t k0 = at % plan.panels * kPanel, row = plan.panel_width(at % plan.panels);
  return weight + at / plan.panels * plan.group_floats + k0 * plan.taps * plan.c + slice * plan.run * plan.taps * row;
}

// The slice of the weight that follows `slice` of panel `at`: the tiles fetch it ahead. The last one names itself.
const float* next_weight(const Plan& plan, const float* weight, int64_t at, int64_t slice, int64_t g0, int64_t g1,
                         int64_t end) {
  if (at + 1 < g1) return weight_at(plan, weight, at + 1, slice);
  if (slice + 1 < plan.slices) return weight_at(plan, weight, g0, slice + 1);
  return weight_at(plan, weight, g1 < end ? g1 : at, 0);
}

// Cache lines that each chunk of each tile fetches, so that all of them fetch a slice.
int64_t ahead_lines(const Plan& plan, const Tiles& t, int64_t tiles, int64_t row) {
  if (plan.group_floats * 4 < kAheadBytes) return 0;
  return ceil_div(t.taps * t.run * row, 16 * tiles * t.taps * ceil_div(t.run, kChunk));
}

// All tiles of a block x a group of `whole` panels, `t` being that of its first tile and panel, and the part of a panel
// `rest` if there is one; `t.ahead` is the weight that is needed next.
void run_by_tile(const Plan& plan, const Sharing& sharing, const Epilogue& epilogue, Tiles t, int64_t whole,
                 const Tiles* rest) {
  const int64_t chunks = ceil_div(plan.c, kChunk);
  t.ahead_lines = plan.group_floats * 4 < kAheadBytes ? 0 : ceil_div(plan.c, sharing.tiles() * chunks);
  Tiles part = rest ? *rest : t;
  part.ahead_lines = 0;
  for (int64_t tile = 0, left = sharing.pixels(); tile < sharing.tiles(); ++tile) {
    const int64_t size = sharing.size + (tile < sharing.large);
    left -= size;
    kPanels[size - 1](t, epilogue, whole, left >= size ? size : 0);
    t.ahead += whole * chunks * t.ahead_lines * 16;
    if (rest) kTiles.of[ceil_div(part.channels, kGrain) - 1][size - 1](part, epilogue);
    for (Tiles* some : {&t, &part}) {
      some->rows += size;
      some->y_at += size;
      some->residual_at += size;
    }
  }
}

// Do rows of w pixels follow each other in planes?
inline bool is_planes(const int64_t (&stride)[4], int64_t w) { return stride[3] == 1 && stride[2] == w; }

// As run_part, of a convolution of planes.
void run_planes_part(const ConvArgs& args, const Plan& plan, const Epilogue& epilogue, const float* weight,
                     int64_t begin, int64_t end, int64_t panel_begin, int64_t panel_end, float* copy) {
  alignas(64) float sums[kPlaneChannels * kPlanePixels];
  const int64_t row = plan.plane_pixels;
  for (int64_t at = begin, count; at < end; at += count) {
    const int64_t n = at / plan.pixels, pixel = at % plan.pixels;
    count = min(min(end - at, plan.pixels - pixel), row);
    const int64_t from = n * args.x.stride[0] + pixel, to = n * args.y_stride[0] + pixel;
    const int64_t residual = n * args.residual.stride[0] + pixel;
    if (args.dtype == DType::f32) {
      copy_planes(copy, row, static_cast<const float*>(args.x.data) + from, args.x.stride[1], plan.c, count);
    } else {
      copy_planes(copy, row, static_cast<const bf16_t*>(args.x.data) + from, args.x.stride[1], plan.c, count);
    }
    const int64_t vectors = ceil_div(count, kLanes);
    for (int64_t panel = panel_begin; panel < panel_end; ++panel) {
      const float* panel_weight = weight_at(plan, weight, panel, 0);
      const int64_t width = plan.panel_width(panel), k0 = panel * kPanel, k1 = min(k0 + kPanel, plan.k);
      for (int64_t k = k0; k < k1; k += kPlaneChannels) {
        const int64_t channels = min(kPlaneChannels, k1 - k);
        for (int64_t i = k; i < k + channels; ++i) {
          const char* y = epilogue.y + (to + i * epilogue.y_c) * epilogue.element;
          for (int64_t byte = 0; byte < count * epilogue.element; byte += 64) __builtin_prefetch(y + byte, 1);
        }
        for (int64_t v = 0; v < vectors; v += kPlaneVectors) {
          kPlaneTiles[min(kPlaneVectors, vectors - v) - 1](copy + v * kLanes, row, plan.c, panel_weight + k - k0, width,
                                                           sums + v * kLanes);
        }
        finish_adjacent(epilogue, {sums, row, count, to, residual, k, channels});
      }
    }
  }
}

// Output pixels [begin, end) of the images in work x panels [panel_begin, panel_end) of all groups.
void run_part(const ConvArgs& args, const Plan& usual, const Source& source, const Epilogue& epilogue,
              const float* weight, int64_t begin, int64_t end, int64_t panel_begin, int64_t panel_end, char* slot) {
  const bool streams = usual.taps == 1 && usual.slices > 1 && end - begin <= kPairPixels;
  const Plan plan = streams ? usual.stream() : usual;
  auto* const rows = reinterpret_cast<const float**>(slot);
  auto* const y_at = reinterpret_cast<int64_t*>(slot + plan.table_bytes);
  auto* const residual_at = reinterpret_cast<int64_t*>(slot + plan.table_bytes + plan.at_bytes);
  auto* const sums = reinterpret_cast<float*>(slot + plan.table_bytes + 2 * plan.at_bytes);
  auto* const gathered = sums + plan.sum_bytes / 4;
  const bool skips = plan.taps > 1 && weight[plan.group_floats * args.shape.groups] != 0;
  const bool gathers =
      plan.gathered && (!plan.apart || (collides(args.shape.stride_w * args.x.stride[3]) && end - begin > kTilePixels));
  const int64_t blocks = ceil_div(end - begin, plan.block);
  for (int64_t b = 0; b < blocks; ++b) {
    const int64_t from = begin + b * (end - begin) / blocks, count = begin + (b + 1) * (end - begin) / blocks - from;
    const Sharing sharing(count);
    point(args, plan, source, from, sharing, skips, {gathers ? nullptr : rows, y_at, residual_at});
    if (gathers) {
      gather(args, plan, source, from, count, gathered);
      Ramp(plan.pitch * 4).fill(rows, address(gathered), count);
    }
    for (int64_t g0 = panel_begin; g0 < panel_end; g0 += plan.panel_group) {
      const int64_t g1 = min(g0 + plan.panel_group, panel_end);
      for (int64_t slice = 0; slice < max(plan.slices, 1); ++slice) {
        const bool last = slice + 1 >= plan.slices, kept = plan.slices > 1 || plan.staged;
        // The first tile of a panel; `beside`: panels that are under way with it.
        const auto tiles_of = [&](int64_t at, int64_t beside) {
          const int64_t group = at / plan.panels, row = plan.panel_width(at % plan.panels);
          const int64_t c0 = slice * plan.run;
          Tiles t;
          t.count = 1;
          t.taps = plan.taps;
          t.c0 = group * plan.c + c0;
          t.run = min(plan.run, plan.c - c0);
          t.weight = weight_at(plan, weight, at, slice);
          t.first = slice == 0;
          t.last = last && !plan.staged;
          t.sums = sums + (plan.slices > 1 ? (at - g0) * plan.block : beside * count) * kPanel;
          t.sums_step = 0;
          t.k0 = group * plan.k + at % plan.panels * kPanel;
          t.channels = min(row, (group + 1) * plan.k - t.k0);
          t.ahead = plan.streamed ? t.weight + kStreamAhead : next_weight(plan, weight, at, slice, g0, g1, panel_end);
          t.ahead_lines = ahead_lines(plan, t, sharing.tiles(), row);
          t.rows = rows;
          t.y_at = y_at;
          t.residual_at = residual_at;
          return t;
        };
        const auto finish_panel = [&](const Tiles& t, const float* panel_sums) {
          if (!last || !plan.staged) return;
          finish(epilogue,
                 Finish{panel_sums, round_up(t.channels, kLanes), count, y_at, residual_at, t.k0, t.channels});
        };
        if (plan.by_tile && count > kPairPixels && g1 - g0 > 1) {
          const bool rest = g1 == plan.panels && plan.k % kPanel != 0;
          Tiles t = tiles_of(g0, 0);
          t.ahead = weight_at(plan, weight, g1 < panel_end ? g1 : panel_begin, 0);
          const Tiles after = tiles_of(g1 - 1, 0);
          run_by_tile(plan, sharing, epilogue, t, g1 - g0 - rest, rest ? &after : nullptr);
          continue;
        }
        for (int64_t at = g0; at < g1; ++at) {
          Tiles t = tiles_of(at, 0);
          const bool whole = at % plan.panels + 1 < plan.panels && at + 1 < g1;
          if (count <= kPairPixels && whole && plan.panel_width((at + 1) % plan.panels) == kPanel) {
            Tiles u = tiles_of(++at, 1);
            if (!plan.streamed) t.ahead = u.ahead;
            if (!plan.streamed && at + 1 < g1) u.ahead = next_weight(plan, weight, at + 1, slice, g0, g1, panel_end);
            kPairs[count - 1](t, u, epilogue);
            finish_panel(t, t.sums);
            finish_panel(u, u.sums);
            continue;
          }
          const int64_t row = round_up(t.channels, kLanes);
          float* const panel_sums = t.sums;
          const auto run_some = [&](int64_t tiles, int64_t size) {
            if (tiles == 0) return;
            t.count = tiles;
            t.sums_step = kept ? size * row : 0;
            kTiles.of[ceil_div(t.channels, kGrain) - 1][size - 1](t, epilogue);
            t.rows += tiles * t.taps * size;
            t.y_at += tiles * size;
            t.residual_at += tiles * size;
            t.sums += tiles * t.sums_step;
            t.ahead += tiles * t.ahead_lines * t.taps * ceil_div(t.run, kChunk) * 16;
          };
          run_some(sharing.large, sharing.size + 1);
          run_some(sharing.small, sharing.size);
          finish_panel(t, panel_sums);
        }
      }
    }
  }
}

// How `threads` share pixels x panels: `rows` * `columns` parts. The fewest operations for the slowest, then the
// fewest bytes: each part reads its share of the weight and of x.
void split(const Plan& plan, int64_t pixels, int64_t panels, int64_t* rows, int64_t* columns) {
  double best = 0;
  *rows = *columns = 1;
  for (int64_t by_panel = 1; by_panel <= min(plan.threads, panels); ++by_panel) {
    const int64_t by_pixel = max(1, min(plan.threads / by_panel, ceil_div(pixels, kTilePixels)));
    const double part_pixels = static_cast<double>(ceil_div(pixels, by_pixel));
    const double part_panels = static_cast<double>(ceil_div(panels, by_panel));
    const double depth = static_cast<double>(max(plan.taps * plan.c, 1));
    // In cycles, roughly: a product of vectors every half cycle, 16 bytes of weight or x a cycle.
    const double cost = part_pixels * part_panels * depth + part_panels * depth * kPanel / 4 +
                        part_pixels * static_cast<double>(plan.c) / 4;
    if (best == 0 || cost < best) best = cost, *rows = by_pixel, *columns = by_panel;
  }
}

void run(const void* blocking, const ConvArgs& args, const float* weight, char* workspace, const Executor& executor) {
  const ConvShape& shape = args.shape;
  const Plan& plan = *static_cast<const Plan*>(blocking);
  auto* copy = reinterpret_cast<float*>(workspace);
  auto* zeros = reinterpret_cast<float*>(workspace + plan.copy_bytes);
  char* slots = workspace + plan.copy_bytes + plan.zero_bytes;
  std::memset(zeros, 0, static_cast<size_t>(plan.zero_bytes));
  const Epilogue epilogue = make_epilogue(args);
  const int64_t panels = shape.groups * plan.panels;
  const bool planes = plan.plane_pixels > 0 && is_planes(args.x.stride, shape.w) && is_planes(args.y_stride, shape.w) &&
                      (args.residual.data == nullptr || is_planes(args.residual.stride, shape.w));
  for (int64_t n = 0; n < shape.n; n += plan.images) {
    const int64_t images = min(plan.images, shape.n - n);
    Source source = {static_cast<const float*>(args.x.data) + n * args.x.stride[0],
                     args.x.stride[0],
                     args.x.stride[2],
                     args.x.stride[3],
                     zeros,
                     n};
    if (plan.copied && (!plan.apart || collides(shape.stride_w * args.x.stride[3]))) {
      to_nhwc(copy, plan.pitch, args.x, args.dtype, n, images, shape, executor);
      source = {copy, shape.h * shape.w * plan.pitch, shape.w * plan.pitch, plan.pitch, zeros, n};
    }
    const int64_t pixels = images * plan.pixels;
    int64_t rows, columns;
    split(plan, pixels, panels, &rows, &columns);
    parallel_for(executor, 0, rows * columns, 1, [&](int64_t begin, int64_t end) {
      for (int64_t part = begin; part < end; ++part) {
        const int64_t row = part / columns, column = part % columns;
        const int64_t from = row * pixels / rows, to = (row + 1) * pixels / rows;
        const int64_t panel_from = column * panels / columns, panel_to = (column + 1) * panels / columns;
        char* const slot = slots + part * plan.slot_bytes;
        if (planes) {
          run_planes_part(args, plan, epilogue, weight, from, to, panel_from, panel_to, reinterpret_cast<float*>(slot));
        } else {
          run_part(args, plan, source, epilogue, weight, from, to, panel_from, panel_to, slot);
        }
      }
    });
  }
}

}  // namespace

extern const ConvMethod conv_direct;
const ConvMethod conv_direct = {packed_floats, pack, make_plan, run, run_conv_chain};

}  // namespace PK_ISA
}  // namespace pk
