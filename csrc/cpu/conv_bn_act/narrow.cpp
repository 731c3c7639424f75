// Convolution in narrow groups: depthwise, every channel its own filter(s), and groups of a few channels, as many in
// as out or twice as many. Channels in lanes; narrow_tile.h has the inner loop.
//
// x goes through a ring of rows in cache: a block of channels at a time, as float32 with adjacent channels and the
// padding's zeros beside them. So the edges are like the rest, no stride of x's makes lines of cache collide, and all
// that follows is the same for every layout of x.
//
//   threads: images x strips of rows x chunks of blocks
//   block of kBlock channels
//   rectangle of kRectangle pixels                              its sums stay in L1 for the epilogue
//
// Weight: [vector of output channels][row][channel of the group][column], each of kLanes channels.
#include "common/rounding.h"
#include "cpu/conv_bn_act/chain.h"
#include "cpu/conv_bn_act/depthwise.h"
#include "cpu/conv_bn_act/depthwise_planes.h"
#include "cpu/conv_bn_act/epilogue.h"
#include "cpu/conv_bn_act/kernels.h"
#include "cpu/conv_bn_act/narrow_tile.h"
#include "cpu/conv_bn_act/transpose.h"
#include "cpu/parallel_for.h"

namespace pk {
namespace PK_ISA {
namespace {

constexpr int64_t kRectangle = 64;          // pixels
constexpr int64_t kThreadWork = 128 << 10;  // products that are worth waking a thread for
constexpr int64_t kAheadBytes = 64 << 10;   // a weight of at least this many bytes is fetched a block ahead

struct Plan {
  int64_t group, out;     // channels of one, in x and in the output
  int64_t repeat;         // output channels of a channel of x, where groups are of one
  int64_t vector_floats;  // of the weight: a vector of output channels
  int64_t blocks, chunks, strips, threads;
  int64_t rows, columns;  // of a rectangle
  int64_t ring, width;    // rows and columns of the ring,
  int64_t ratio, pitch;   // its channels by those of the output, and by pixel
  int64_t ring_bytes, slot_bytes;
  const DepthwiseTable* depthwise;  // for x where it lies, channels adjacent, or null
  bool planes;                      // the same, if pixels turn out to be adjacent in all tensors

  Plan(const ConvArgs& args, int most_threads) {
    const ConvShape& shape = args.shape;
    const int64_t p = shape.p(), q = shape.q();
    group = shape.c / shape.groups;
    out = shape.k / shape.groups;
    repeat = group == 1 ? out : 1;
    ratio = max(1, group / out);
    pitch = ratio * kBlock;
    vector_floats = shape.r * group * shape.s * kLanes;
    blocks = ceil_div(shape.k, kBlock);
    columns = min(q, kRectangle);
    rows = max(1, min(p, kRectangle / columns));
    ring = min(shape.h, (shape.r - 1) * shape.dilation_h + (rows - 1) * shape.stride_h + 1);
    width = max((q - 1) * shape.stride_w + (shape.s - 1) * shape.dilation_w + 1, shape.pad_left + shape.w);
    const int64_t work = shape.n * p * q * shape.k * shape.r * shape.s * group;
    threads = max(1, min(most_threads, work / kThreadWork));
    chunks = strips = 1;
    if (shape.n % threads != 0) {
      // Rows are shared unless there are few of them.
      if (p >= 8 * threads) {
        strips = threads;
      } else {
        chunks = min(blocks, threads);
        strips = min(p, ceil_div(threads, shape.n * chunks));
      }
    }
    const bool single = group == 1 && args.dtype == DType::f32, adjacent = args.x.stride[1] == 1;
    depthwise = single && adjacent && repeat == 1 ? depthwise_of(shape) : nullptr;
    planes = single && !adjacent && suits_planes(shape);
    ring_bytes = depthwise ? 0 : round_up(ring * width * pitch * 4, kConvAlign);
    slot_bytes = ring_bytes + round_up(shape.r * 8, kConvAlign);
  }
};

int64_t packed_floats(const ConvShape& shape) {
  return round_up(shape.k, kLanes) * shape.r * shape.s * (shape.c / shape.groups);
}

template <class T>
void pack_as(const ConvShape& shape, const T* from, const ConvTensor& weight, float* packed) {
  const int64_t group = shape.c / shape.groups;
  for (int64_t k0 = 0; k0 < shape.k; k0 += kLanes) {
    for (int64_t r = 0; r < shape.r; ++r) {
      for (int64_t c = 0; c < group; ++c) {
        for (int64_t s = 0; s < shape.s; ++s) {
          const int64_t at = c * weight.stride[1] + r * weight.stride[2] + s * weight.stride[3];
          for (int64_t k = k0; k < k0 + kLanes; ++k) {
            *packed++ = k < shape.k ? widen(from[k * weight.stride[0] + at]) : 0.0f;
          }
        }
      }
    }
  }
}

void pack(const ConvShape& shape, DType dtype, const ConvTensor& weight, float* packed, const Executor&) {
  if (dtype == DType::f32) {
    pack_as(shape, static_cast<const float*>(weight.data), weight, packed);
  } else {
    pack_as(shape, static_cast<const bf16_t*>(weight.data), weight, packed);
  }
}

static_assert(sizeof(Plan) <= kConvBlockingBytes);

int64_t make_plan(const ConvArgs& args, int threads, void* blocking) {
  const Plan plan(args, threads);
  std::memcpy(blocking, &plan, sizeof plan);
  return plan.threads * plan.slot_bytes;
}

// Of positions first + i * step, i < count: the range of i that lies in [0, size).
inline void inside(int64_t first, int64_t step, int64_t count, int64_t size, int64_t* begin, int64_t* end) {
  *begin = first < 0 ? min(ceil_div(-first, step), count) : 0;
  *end = max(first < size ? min(ceil_div(size - first, step), count) : 0, *begin);
}

struct Rectangle {
  int64_t p0, p1, q0, q1;
};

// Of a rectangle of pixels.
struct Scratch {
  alignas(64) float sums[kRectangle * kBlock];
  int64_t y_at[kRectangle], residual_at[kRectangle];
};

// One thread's share of a call: an image, some blocks of channels, some rows of y.
struct Part {
  const ConvArgs& args;
  const ConvShape& shape;
  const Plan& plan;
  const Epilogue& epilogue;
  const NarrowTable& table;
  const float* weight;
  float* ring;
  const float** rows;  // [r]
  Scratch& scratch;
  int64_t image = 0;
  int64_t x_rows = 0;                                  // of x, where row h lies at h % x_rows; or 0: all
  int64_t y_first = 0;                                 // the row of y that args.y begins with
  const float *ahead = nullptr, *ahead_end = nullptr;  // the weight of the next block, and
  int64_t ahead_floats = 0;                            // how much of it each tile fetches

  int64_t channels(int64_t block) const { return min(kBlock, shape.k - block * kBlock); }
  float* ring_row(int64_t h) const { return ring + h % plan.ring * plan.width * plan.pitch; }

  void clear_padding() {
    const int64_t left = shape.pad_left * plan.pitch, right = left + shape.w * plan.pitch,
                  row = plan.width * plan.pitch;
    for (int64_t h = 0; h < plan.ring; ++h) {
      std::memset(ring_row(h), 0, static_cast<size_t>(left) * 4);
      std::memset(ring_row(h) + right, 0, static_cast<size_t>(row - right) * 4);
    }
  }

  // Rows [h0, h1) of a block into the ring.
  template <class T>
  void fill(const T* x, int64_t h0, int64_t h1, int64_t block) {
    const int64_t k0 = block * plan.pitch, count = channels(block) * plan.ratio, stride_c = args.x.stride[1];
    const int64_t stride_h = args.x.stride[2], stride_w = args.x.stride[3];
    x += image * args.x.stride[0];
    if (stride_c == 1 && plan.repeat == 1) {
      for (int64_t h = h0; h < h1; ++h) {
        float* to = ring_row(h) + shape.pad_left * plan.pitch;
        const T* from = x + h * stride_h + k0;
        for (int64_t w = 0; w < shape.w; ++w, to += plan.pitch, from += stride_w) {
          if (count == kBlock) {
#pragma GCC unroll 4
            for (int64_t v = 0; v < kNarrowVectors; ++v) store(to + v * kLanes, load_widened(from + v * kLanes));
          } else {
            int64_t i = 0;
            for (; i + kLanes <= count; i += kLanes) store(to + i, load_widened(from + i));
            for (; i < count; ++i) to[i] = widen(from[i]);
          }
        }
      }
      return;
    }
    int64_t i = 0;
    if (stride_w == 1 && plan.repeat == 1 && count >= kLanes) {
      // Rows that follow each other are one. The last vector may overlap the one before.
      const int64_t joined = stride_h == shape.w ? h1 - h0 : 1;
      for (; i < count; i += kLanes) {
        const int64_t k = min(i, count - kLanes);
        for (int64_t h = h0; h < h1; h += joined) {
          int64_t at = h, w = 0;
          float* to = ring_row(h) + shape.pad_left * plan.pitch + k;
          transpose_rows(x + (k0 + k) * stride_c + h * stride_h, stride_c, joined * shape.w, [&] {
            if (w == shape.w) {
              w = 0;
              to = ring_row(++at) + shape.pad_left * plan.pitch + k;
            }
            ++w;
            float* pixel = to;
            to += plan.pitch;
            return pixel;
          });
        }
      }
      return;
    }
    for (int64_t h = h0; h < h1; ++h) {
      float* to = ring_row(h) + shape.pad_left * plan.pitch;
      for (int64_t w = 0; w < shape.w; ++w, to += plan.pitch) {
        const T* from = x + h * stride_h + w * stride_w + k0 / plan.repeat * stride_c;
        int64_t left = plan.repeat - k0 % plan.repeat;  // of the output channels that share *from
        for (i = 0; i < count; from += stride_c, left = plan.repeat) {
          const float value = widen(*from);
          for (const int64_t stop = min(i + left, count); i < stop; ++i) to[i] = value;
        }
      }
    }
  }

  void point(const Rectangle& y) {
    int64_t i = 0;
    for (int64_t p = y.p0; p < y.p1; ++p) {
      for (int64_t q = y.q0; q < y.q1; ++q, ++i) {
        scratch.y_at[i] = image * args.y_stride[0] + (p - y_first) * args.y_stride[2] + q * args.y_stride[3];
        scratch.residual_at[i] =
            image * args.residual.stride[0] + p * args.residual.stride[2] + q * args.residual.stride[3];
      }
    }
  }

  // The sums of a block of channels, and what follows them.
  void compute(const Rectangle& y, int64_t block) {
    const int64_t k0 = block * kBlock, count = channels(block);
    const int64_t columns = y.q1 - y.q0, tiles = ceil_div(columns, kNarrowPixels);
    NarrowTile t;
    t.rows = rows;
    t.step = shape.stride_w * plan.pitch;
    t.tap = shape.dilation_w * plan.pitch;
    t.s = shape.s;
    t.group = plan.group;
    t.out = plan.out;
    t.vector_floats = plan.vector_floats;
    t.vectors = ceil_div(count, kLanes);
    t.sums = scratch.sums;
    for (int64_t p = y.p0; p < y.p1; ++p) {
      const int64_t h0 = p * shape.stride_h - shape.pad_top;
      int64_t r0, r1;
      inside(h0, shape.dilation_h, shape.r, shape.h, &r0, &r1);
      t.row_count = r1 - r0;
      for (int64_t r = r0; r < r1; ++r) rows[r - r0] = ring_row(h0 + r * shape.dilation_h);
      t.weight = weight + k0 / kLanes * plan.vector_floats + r0 * plan.group * shape.s * kLanes;
      for (int64_t i = 0, q = y.q0; i < tiles; ++i) {
        const int64_t pixels = y.q0 + (i + 1) * columns / tiles - q;
        t.at = q * t.step;
        const float* const stop = ahead + min(ahead_floats, ahead_end - ahead);
        for (; ahead < stop; ahead += 16) __builtin_prefetch(ahead, 0, 2);
        table.tiles[pixels - 1](t);
        t.sums += pixels * kBlock;
        q += pixels;
      }
    }
    finish(epilogue, {scratch.sums, kBlock, (y.p1 - y.p0) * columns, scratch.y_at, scratch.residual_at, k0, count});
  }

  // Rows [begin, end) of blocks [b0, b1), from x where it lies.
  void run_in_place(const DepthwiseTable& depthwise, int64_t begin, int64_t end, int64_t b0, int64_t b1) {
    const int64_t q_size = shape.q(), tiles = ceil_div(q_size, kDepthwisePixels), stride = shape.stride_w;
    const auto* x = static_cast<const float*>(args.x.data) + image * args.x.stride[0];
    DepthwiseTile t;
    t.pixel = args.x.stride[3];
    t.vector_floats = plan.vector_floats;
    t.sums = scratch.sums;
    t.row = kBlock;
    t.y_at = scratch.y_at;
    t.residual_at = scratch.residual_at;
    for (int64_t p = begin; p < end; p += kDepthwiseRows) {
      const int64_t y_rows = min(kDepthwiseRows, end - p);
      const int64_t h0 = p * shape.stride_h - shape.pad_top, count = (y_rows - 1) * shape.stride_h + shape.r;
      const float* x_row[sizeof t.x / sizeof *t.x];
      for (int64_t h = h0; h < h0 + count; ++h) {
        const bool inside = h >= 0 && h < shape.h;
        x_row[h - h0] = inside ? x + (x_rows ? h % x_rows : h) * args.x.stride[2] : nullptr;
      }
      for (int64_t block = b0; block < b1; ++block) {
        t.k0 = block * kBlock;
        t.channels = channels(block);
        t.weight = weight + t.k0 / kLanes * plan.vector_floats;
        const int64_t whole = t.channels / kLanes, vectors = ceil_div(t.channels, kLanes);
        for (int64_t i = 0, q = 0; i < tiles; ++i) {
          const int64_t pixels = (i + 1) * q_size / tiles - q;
          const int64_t w0 = q * stride - shape.pad_left, columns = (pixels - 1) * stride + shape.s;
          for (int64_t h = 0; h < count; ++h) t.x[h] = x_row[h] ? x_row[h] + w0 * t.pixel + t.k0 : nullptr;
          t.first = max(0, -w0);
          t.last = min(columns, shape.w - w0);
          point({p, p + y_rows, q, q + pixels});
          const bool edge = t.first > 0 || t.last < columns || h0 < 0 || h0 + count > shape.h;
          t.v0 = 0;
          t.v1 = edge ? vectors : whole;
          depthwise.tiles[edge][y_rows - 1][pixels - 1](t, epilogue);
          if (t.v1 < vectors) {
            t.v0 = whole;
            t.v1 = vectors;
            depthwise.tiles[true][y_rows - 1][pixels - 1](t, epilogue);
          }
          const int64_t done = epilogue.in_registers ? whole * kLanes : 0;
          if (done < t.channels) {
            finish(epilogue,
                   {t.sums + done, t.row, y_rows * pixels, t.y_at, t.residual_at, t.k0 + done, t.channels - done});
          }
          q += pixels;
        }
      }
    }
  }

  bool has_planes() const {
    return plan.planes && args.x.stride[3] == 1 && args.y_stride[3] == 1 &&
           (args.residual.data == nullptr || args.residual.stride[3] == 1);
  }

  // Rows [begin, end) of channels [k0, k1), from x where it lies, pixels in lanes.
  void run_planes(int64_t begin, int64_t end, int64_t k0, int64_t k1) {
    constexpr int64_t kMost = kRectangle * kBlock / (kPlaneRows * kLanes);  // vectors of a row at a time
    const int64_t vectors = ceil_div(shape.q(), kLanes);
    // Vectors [left, right) read columns of x alone.
    const int64_t left = ceil_div(shape.pad_left, kLanes);
    const int64_t right = max(left, (shape.w + shape.pad_left - kPlaneTaps + 1) / kLanes);
    PlaneTile t;
    t.w = shape.w;
    t.left = shape.pad_left;
    t.sums = scratch.sums;
    t.row = kMost * kLanes;
    for (int64_t k = k0; k < k1; ++k) {
      const auto* x =
          static_cast<const float*>(args.x.data) + image * args.x.stride[0] + k / plan.repeat * args.x.stride[1];
      t.weight = weight + k / kLanes * plan.vector_floats + k % kLanes;
      for (int64_t p = begin; p < end; p += kPlaneRows) {
        const int64_t y_rows = min(kPlaneRows, end - p);
        const int64_t h0 = p - shape.pad_top, x_rows = y_rows - 1 + kPlaneTaps;
        for (int64_t h = 0; h < x_rows; ++h) {
          t.x[h] = h0 + h >= 0 && h0 + h < shape.h ? x + (h0 + h) * args.x.stride[2] : nullptr;
        }
        const bool rows_inside = h0 >= 0 && h0 + x_rows <= shape.h;
        for (t.origin = 0; t.origin < vectors; t.origin += kMost) {
          const int64_t last = min(t.origin + kMost, vectors);
          const int64_t stops[] = {t.origin, min(max(left, t.origin), last), max(min(right, last), t.origin), last};
          for (int part = 0; part < 3; ++part) {
            t.begin = stops[part];
            t.end = stops[part + 1];
            if (t.begin < t.end) kPlaneFunctions[part != 1 || !rows_inside][y_rows - 1](t);
          }
          for (int64_t i = 0; i < y_rows; ++i) {
            const int64_t q = t.origin * kLanes, pixels = min(last * kLanes, shape.q()) - q;
            const int64_t y_at = image * args.y_stride[0] + (p + i) * args.y_stride[2] + q;
            const int64_t residual_at = image * args.residual.stride[0] + (p + i) * args.residual.stride[2] + q;
            finish_adjacent(epilogue, {t.sums + i * t.row, t.row, pixels, y_at, residual_at, k, 1});
          }
        }
      }
    }
  }

  void run(int64_t strip, int64_t chunk) {
    const int64_t p_size = shape.p(), q_size = shape.q();
    const int64_t begin = strip * p_size / plan.strips, end = (strip + 1) * p_size / plan.strips;
    const int64_t b0 = chunk * plan.blocks / plan.chunks, b1 = (chunk + 1) * plan.blocks / plan.chunks;
    if (plan.depthwise) return run_in_place(*plan.depthwise, begin, end, b0, b1);
    if (has_planes()) return run_planes(begin, end, b0 * kBlock, min(b1 * kBlock, shape.k));
    const bool one = end - begin <= plan.rows && q_size <= plan.columns;  // rectangle
    if (one) point({begin, end, 0, q_size});
    const bool fetches = plan.vector_floats * ceil_div(shape.k, kLanes) * 4 >= kAheadBytes;
    for (int64_t block = b0; block < b1; ++block) {
      int64_t filled = 0;
      if (fetches && block + 1 < b1) {
        const int64_t vectors = ceil_div(channels(block + 1), kLanes);
        ahead = weight + (block + 1) * kNarrowVectors * plan.vector_floats;
        ahead_end = ahead + vectors * plan.vector_floats;
        ahead_floats = round_up(ceil_div(ahead_end - ahead, (end - begin) * ceil_div(q_size, kNarrowPixels)), 16);
      }
      for (int64_t p = begin; p < end; p += plan.rows) {
        const int64_t p1 = min(p + plan.rows, end);
        const int64_t h0 = max(p * shape.stride_h - shape.pad_top, filled);
        const int64_t h1 =
            min((p1 - 1) * shape.stride_h - shape.pad_top + (shape.r - 1) * shape.dilation_h + 1, shape.h);
        if (args.dtype == DType::f32) {
          fill(static_cast<const float*>(args.x.data), h0, h1, block);
        } else {
          fill(static_cast<const bf16_t*>(args.x.data), h0, h1, block);
        }
        filled = max(filled, h1);
        for (int64_t q = 0; q < q_size; q += plan.columns) {
          const Rectangle y = {p, p1, q, min(q + plan.columns, q_size)};
          if (!one) point(y);
          compute(y, block);
        }
      }
    }
  }
};

void run(const void* blocking, const ConvArgs& args, const float* weight, char* workspace, const Executor& executor) {
  const ConvShape& shape = args.shape;
  const Plan& plan = *static_cast<const Plan*>(blocking);
  const Epilogue epilogue = make_epilogue(args);
  const NarrowTable& table = narrow_of(plan.group, plan.out, shape.s, shape.stride_w, shape.dilation_w);
  const int64_t units = shape.n * plan.strips * plan.chunks, parts = min(plan.threads, units);
  parallel_for(executor, 0, parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      char* slot = workspace + i * plan.slot_bytes;
      auto* rows = reinterpret_cast<const float**>(slot + plan.ring_bytes);
      Scratch scratch;
      Part part = {args, shape, plan, epilogue, table, weight, reinterpret_cast<float*>(slot), rows, scratch};
      if (!plan.depthwise && !part.has_planes()) part.clear_padding();
      for (int64_t unit = i * units / parts; unit < (i + 1) * units / parts; ++unit) {
        part.image = unit / (plan.strips * plan.chunks);
        part.run(unit / plan.chunks % plan.strips, unit % plan.chunks);
      }
    }
  });
}

}  // namespace

bool is_depthwise_in_place(const ConvPlan& plan) {
  return plan.layout == static_cast<int32_t>(ConvLayout::narrow) &&
         reinterpret_cast<const Plan*>(plan.blocking)->depthwise != nullptr;
}

void depthwise_rows(const ConvPlan& conv, const ConvArgs& args, int64_t begin, int64_t end, int64_t x_rows) {
  const Plan& plan = *reinterpret_cast<const Plan*>(conv.blocking);
  const ConvShape& shape = args.shape;
  const Epilogue epilogue = make_epilogue(args);
  Scratch scratch;
  Part part = {args,
               shape,
               plan,
               epilogue,
               narrow_of(plan.group, plan.out, shape.s, shape.stride_w, shape.dilation_w),
               weight_of(conv),
               nullptr,
               nullptr,
               scratch};
  part.x_rows = x_rows;
  part.y_first = begin;
  part.run_in_place(*plan.depthwise, begin, end, 0, plan.blocks);
}

extern const ConvMethod conv_narrow;
const ConvMethod conv_narrow = {packed_floats, pack, make_plan, run};

}  // namespace PK_ISA
}  // namespace pk
