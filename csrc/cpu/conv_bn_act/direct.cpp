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
#include "common/rounding.h"
#include "cpu/conv_bn_act/kernels.h"
#include "cpu/conv_bn_act/nhwc.h"
#include "cpu/conv_bn_act/planes.h"
#include "cpu/conv_bn_act/tile.h"

namespace pk {
namespace PK_ISA {
namespace {

constexpr int64_t kSliceBytes = 20 << 10;  // weight slice: most of L1, x needs little
constexpr int64_t kWideBytes = 64 << 10;   // the same of tiles that do 28 products for two loads of weights: L2 will do
constexpr int64_t kBlockBytes = 128 << 10;  // x of a pixel block; twice that where the weight exceeds kFarFloats
constexpr int64_t kFarFloats = 256 << 10;   // a weight of more floats comes from L3 or memory, once for each block
constexpr int64_t kGroupBytes = 128 << 10;  // weights of a group of panels, where it goes by tile
constexpr int64_t kSumBytes = 64 << 10;     // partial sums of a pixel block
constexpr int64_t kCopyBytes = 4 << 20;     // copied images that are worked on at a time, if that is more than one
constexpr int64_t kAheadBytes = 192 << 10;  // weights of at least this many bytes do not stay in L2
constexpr int64_t kStreamAhead = 1024;      // floats from what is read to what is fetched
constexpr int64_t kMinRun = 16;
constexpr int64_t kPlaneBytes = 28 << 10;  // x of the pixels that planes.h works on, where L1 has room for it

// Do pixels `step` floats apart share so few sets of L1 that a tile's throw each other out?
inline bool collides(int64_t step) { return step * 4 % 2048 == 0; }

// What shape and ISA alone decide: the form of the packed weight and the order of summation.
struct Form {
  int64_t c, k;          // of one group
  int64_t taps, run;     // run: channels of a slice
  int64_t slices;        // of input channels
  int64_t panels;        // of one group
  int64_t group_floats;  // of the weight

  explicit Form(const ConvShape& shape) {
    c = shape.c / shape.groups;
    k = shape.k / shape.groups;
    taps = shape.r * shape.s;
    group_floats = round_up(k, kGrain) * taps * c;
    // Larger filters of so many floats are for small maps, of which few tiles use a slice.
    const bool wide = kTilePixels > 8 && (taps == 1 || group_floats <= kFarFloats);
    const int64_t most = max(kMinRun, (wide ? kWideBytes : kSliceBytes) / (taps * kPanel * 4));
    slices = max(1, ceil_div(c, most));
    run = max(1, ceil_div(c, slices));
    slices = ceil_div(c, run);
    panels = ceil_div(k, kPanel);
  }

  int64_t panel_width(int64_t panel) const { return min(kPanel, round_up(k - panel * kPanel, kGrain)); }
};

// What the layout of x and the number of threads decide besides.
struct Plan : Form {
  bool copied;           // x goes through a float32 channels-last copy, image by image,
  bool gathered;         // or block by block,
  bool apart;            // and that only if its pixels collide
  int64_t plane_pixels;  // worked on by planes.h, if x and y prove to be planes of adjacent pixels; or none
  bool staged;           // y's channels are not adjacent: a panel is finished for a whole block at a time
  int64_t images;        // worked on at a time
  int64_t pixels;        // p * q
  int64_t block;         // most pixels of a block
  int64_t panel_group;   // panels whose sums are held at a time
  int64_t threads;
  bool streamed = false;  // see stream()
  bool by_tile = false;   // a group of panels for each tile rather than the tiles for each panel
  int64_t pitch;          // of the pixels that are copied or gathered, in floats
  int64_t copy_bytes, zero_bytes, table_bytes, at_bytes, sum_bytes, slot_bytes;

  Plan(const ConvArgs& args, int most_threads) : Form(args.shape) {
    const ConvShape& shape = args.shape;
    const bool adjacent = args.x.stride[1] == 1 || shape.c == 1;
    const bool lies_well = args.dtype == DType::f32 && adjacent, collide = collides(shape.stride_w * shape.c);
    // Each copied pixel has to be used often enough.
    const int64_t uses = taps == 1 ? k : k * taps / (shape.stride_h * shape.stride_w);
    apart = lies_well && kTilePixels > 8 && collide && uses > kPanel;
    copied = taps > 1 && (apart || !lies_well);
    gathered = taps == 1 && (apart || !lies_well);
    pitch = collide ? round_up(shape.c, 32) + 16 : shape.c;  // an odd number of lines
    pixels = shape.p() * shape.q();
    const int64_t image_bytes = shape.h * shape.w * pitch * 4;
    images = copied ? min(max(kCopyBytes / max(image_bytes, 1), 1), shape.n) : shape.n;

    staged = args.y_stride[1] != 1 || shape.k == 1;
    if (taps == 1 && !staged && shape.groups == 1) {
      // The weight passes by once a tile, x and y once: it has to be the smaller. Rows of y a multiple of 4 KB apart
      // compete for one set of L1, and are better written whole.
      const int64_t weights = c * k, maps = shape.n * shape.p() * shape.q() * (c + k);
      by_tile = 3 * weights <= maps || (k % 1024 == 0 && weights <= 2 * maps);
    }
    if (by_tile) run = c, slices = 1;

    // Here the weight passes by once for some pixels, x and y once.
    const bool planes = taps == 1 && shape.groups == 1 && slices == 1 && c > 0 && args.x.stride[1] != 1 &&
                        args.y_stride[1] != 1 && shape.stride_h == 1 && shape.stride_w == 1 && shape.p() == shape.h &&
                        shape.q() == shape.w && pixels >= 144 && 2 * c * k <= pixels * (c + k);
    plane_pixels = planes ? kPlanePixels : 0;
    while (plane_pixels > kPlaneVectors * kLanes && c * plane_pixels * 4 > kPlaneBytes) plane_pixels /= 2;

    // x pixels that an output pixel brings into the block, halo apart.
    const int64_t spread = min(shape.stride_h * shape.stride_w, max(taps, 1));
    const int64_t fitting = kBlockBytes * (group_floats > kFarFloats ? 2 : 1) / max(spread * c * 4, 1);
    block = min(max(round_up(fitting, kTilePixels), 8 * kTilePixels), 512 / kTilePixels * kTilePixels);
    block = max(min(block, images * pixels), 1);
    panel_group = slices > 1 ? max(1, kSumBytes / (block * kPanel * 4)) : shape.groups * panels;

    // A thread is worth waking for some ten microseconds of work.
    const int64_t work = images * pixels * max(taps * c, 1) * round_up(k, kLanes) * shape.groups;
    threads = max(1, min(most_threads, work / (32768 * kLanes)));
    copy_bytes = copied ? round_up(images * image_bytes, kConvAlign) : 0;
    zero_bytes = round_up(max(shape.c, 1) * 4, kConvAlign);
    // point() fills whole vectors.
    table_bytes = round_up(block * taps * 8 + kVecBytes, kConvAlign);
    at_bytes = round_up(block * 8 + kVecBytes, kConvAlign);
    if (by_tile) panel_group = min(max(1, kGroupBytes / max(c * kPanel * 4, 1)), panels);
    const int64_t sum_panels = slices > 1 ? panel_group : staged ? 1 : 0;
    sum_bytes = (sum_panels * block + kTilePixels) * kPanel * 4;
    slot_bytes = table_bytes + 2 * at_bytes + sum_bytes + (gathered ? block * pitch * 4 : 0) + kConvAlign;
    slot_bytes = max(slot_bytes, round_up(c * plane_pixels * 4, kConvAlign));
  }

  // For few pixels, which read each weight once, slices are a detour: those of a panel follow each other in memory
  // where there is one tap, and are read as the one stream that they are.
  Plan stream() const {
    Plan plan = *this;
    plan.run = c;
    plan.slices = 1;
    plan.panel_group = panels;
    plan.streamed = true;
    return plan;
  }
};

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

// The images in work: pixels [0, images * pixels) of `x`, float32.
struct Source {
  const float* x;
  int64_t stride_n, stride_h, stride_w;  // in floats
  const float* zeros;
  int64_t first_image;
};

// How the pixels of a block are shared: `large` tiles of size + 1 pixels, then `small` ones of size.
struct Sharing {
  int64_t large, small, size;

  explicit Sharing(int64_t pixels) {
    const int64_t tiles = ceil_div(pixels, kTilePixels);
    size = pixels / tiles;
    large = pixels % tiles;
    small = tiles - large;
  }
  int64_t tiles() const { return large + small; }
  int64_t pixels() const { return large * (size + 1) + small * size; }
};

// Numbers a constant step apart, a vector at a time.
struct Ramp {
  I64 steps;
  int64_t vector_step;

  explicit Ramp(int64_t step) : vector_step(kVecBytes / 8 * step) {
    for (int i = 0; i < kVecBytes / 8; ++i) steps[i] = i * step;
  }
  // `count` numbers from `first` on, and as many more as fill the last vector.
  void fill(void* to, int64_t first, int64_t count) const {
    I64 v = steps + first;
    for (int64_t i = 0; i < count; i += kVecBytes / 8, v += vector_step) store(static_cast<int64_t*>(to) + i, v);
  }
};

inline int64_t address(const float* x) { return static_cast<int64_t>(reinterpret_cast<uintptr_t>(x)); }

// The columns of the output in bands of which all pixels meet the same taps, where the filter is dilated: so taps that
// meet nothing but padding are those of whole tiles. Pixels go band by band.
struct Bands {
  int64_t count = 1, ends[6];  // band i: columns from the end of the one before

  explicit Bands(const ConvShape& shape) {
    const int64_t q = shape.q();
    ends[0] = q;
    if (shape.dilation_w == 1 || shape.s == 1 || shape.s > 3) return;
    for (int64_t s = 0; s < shape.s; ++s) {
      // Tap s reads in [0, w) from the first column to before the second.
      const int64_t at = s * shape.dilation_w - shape.pad_left;
      insert(ceil_div(max(-at, 0), shape.stride_w), q);
      insert(ceil_div(max(shape.w - at, 0), shape.stride_w), q);
    }
  }

  void insert(int64_t column, int64_t q) {
    if (column <= 0 || column >= q) return;
    int64_t i = count;
    for (; i > 0 && ends[i - 1] > column; --i) {
    }
    if (i > 0 && ends[i - 1] == column) return;
    for (int64_t j = count++; j > i; --j) ends[j] = ends[j - 1];
    ends[i] = column;
  }
  int64_t begin(int64_t i) const { return i == 0 ? 0 : ends[i - 1]; }
  int64_t width(int64_t i) const { return ends[i] - begin(i); }
};

// Pixels of a tile that stand in one row of the output.
struct Segment {
  int64_t at, count;  // in the tile
  int64_t h0, w0;     // where the first tap of the first pixel lies in x, though that may be outside,
  const float* x;
};

// What `point` fills: see Tiles.
struct Table {
  const float** rows;  // or null: not wanted
  int64_t* y_at;
  int64_t* residual_at;
};

// Pointers and offsets of output pixels [begin, ...), tile by tile. `skips`: taps without a pixel of x are marked by
// null. Whole vectors are written, so whatever comes later has to be written later.
void point(const ConvArgs& args, const Plan& plan, const Source& source, int64_t begin, const Sharing& sharing,
           bool skips, Table table) {
  const ConvShape& shape = args.shape;
  const int64_t p_size = shape.p();
  const Bands bands(shape);
  const Ramp x_ramp(shape.stride_w * source.stride_w * 4), zeros_ramp(0);
  const Ramp y_ramp(args.y_stride[3]), residual_ramp(args.residual.stride[3]);
  int64_t n = begin / plan.pixels, left = begin % plan.pixels, band = 0;
  for (; left >= p_size * bands.width(band); ++band) left -= p_size * bands.width(band);
  int64_t p = left / bands.width(band), q = bands.begin(band) + left % bands.width(band);
  for (int64_t tile = 0; tile < sharing.tiles(); ++tile) {
    const int64_t size = sharing.size + (tile < sharing.large);
    Segment segments[kTilePixels];
    int64_t count = 0;
    for (int64_t i = 0; i < size;) {
      const int64_t image = source.first_image + n, h0 = p * shape.stride_h - shape.pad_top;
      const int64_t w0 = q * shape.stride_w - shape.pad_left;
      Segment& segment = segments[count++];
      segment = {i, min(size - i, bands.ends[band] - q), h0, w0,
                 source.x + n * source.stride_n + h0 * source.stride_h + w0 * source.stride_w};
      const auto offset = [&](const int64_t* stride) { return image * stride[0] + p * stride[2] + q * stride[3]; };
      y_ramp.fill(table.y_at + i, offset(args.y_stride), segment.count);
      residual_ramp.fill(table.residual_at + i, offset(args.residual.stride), segment.count);
      i += segment.count;
      q += segment.count;
      if (q == bands.ends[band]) {
        if (++p == p_size) {
          p = 0;
          if (++band == bands.count) band = 0, ++n;
        }
        q = bands.begin(band);
      }
    }
    table.y_at += size;
    table.residual_at += size;
    if (table.rows == nullptr) continue;
    for (int64_t r = 0; r < shape.r; ++r) {
      for (int64_t s = 0; s < shape.s; ++s, table.rows += size) {
        bool reads = false;
        for (int64_t i = 0; i < count; ++i) {
          const Segment& segment = segments[i];
          const float** to = table.rows + segment.at;
          const int64_t h = segment.h0 + r * shape.dilation_h, w = segment.w0 + s * shape.dilation_w;
          const int64_t last = w + (segment.count - 1) * shape.stride_w;
          if (h < 0 || h >= shape.h || last < 0 || w >= shape.w) {
            zeros_ramp.fill(to, address(source.zeros), segment.count);
            continue;
          }
          const float* x = segment.x + r * shape.dilation_h * source.stride_h + s * shape.dilation_w * source.stride_w;
          x_ramp.fill(to, address(x), segment.count);
          if (w >= 0 && last < shape.w) {
            reads = true;
            continue;
          }
          for (int64_t j = 0; j < segment.count; ++j) {
            const int64_t at = w + j * shape.stride_w;
            if (at >= 0 && at < shape.w) {
              reads = true;
            } else {
              to[j] = source.zeros;
            }
          }
        }
        if (skips && !reads) table.rows[0] = nullptr;
      }
    }
  }
}

// The x of output pixels [begin, begin + count) to `to`, plan.pitch apart: 1 x 1 alone.
void gather(const ConvArgs& args, const Plan& plan, const Source& source, int64_t begin, int64_t count, float* to) {
  const ConvShape& shape = args.shape;
  const int64_t q_size = shape.q(), p_size = shape.p(), step = shape.stride_w * args.x.stride[3];
  const bool inside = shape.pad_top == 0 && shape.pad_left == 0 && shape.pad_bottom == 0 && shape.pad_right == 0;
  const bool joined = inside && shape.stride_h * args.x.stride[2] == q_size * step;
  for (int64_t i = begin, run; i < begin + count; i += run, to += run * plan.pitch) {
    const int64_t q = i % q_size, p = i / q_size % p_size, n = source.first_image + i / plan.pixels;
    const int64_t h = p * shape.stride_h - shape.pad_top, w = q * shape.stride_w - shape.pad_left;
    run = min(begin + count - i, joined ? plan.pixels - i % plan.pixels : inside ? q_size - q : 1);
    if (h < 0 || h >= shape.h || w < 0 || w >= shape.w) {
      std::memset(to, 0, static_cast<size_t>(shape.c) * 4);
      continue;
    }
    copy_pixels(to, plan.pitch, run, shape.c, args.x, args.dtype,
                n * args.x.stride[0] + h * args.x.stride[2] + w * args.x.stride[3], step);
  }
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
const ConvMethod conv_direct = {packed_floats, pack, make_plan, run};

}  // namespace PK_ISA
}  // namespace pk
