// Convolutions that read each other's results, by bands of rows: one that widens (1x1, or the first of a network), a
// depthwise or grouped one, and a 1x1 one.
//
//   threads: images x strips of rows of the second convolution's y
//   band of rows      rows of the first y that this band is the first to read   -> a ring of rows
//                     the band of the second y                                  -> memory for a band
//                     the band of the third y, if there is one
//
// A depthwise convolution reads the ring where its rows lie. For a grouped one they begin with the ring, so the rows
// that two bands read are moved there first. So what lies between them, several times as large as what goes in and
// comes out, stays in L2. Ring and band lie in the memory of the first y. Neighbouring strips both compute the rows
// that both read. The products and their order are those of the convolutions one after the other, and so are the bits.
#include "cpu/conv_bn_act/chain.h"

#include <cstring>

#include "common/rounding.h"
#include "cpu/parallel_for.h"
#include "cpu/vec.h"

namespace pk {
namespace PK_ISA {
namespace {

constexpr int64_t kLeast = 512 << 10;        // bytes of a strip of the first y that leave L2
constexpr int64_t kBandBytes = 384 << 10;    // of ring and band
constexpr int64_t kWeightBytes = 400 << 10;  // that every band of a grouped convolution's chain reads

// The addresses of a tensor of (n, c, h, w).
struct Range {
  uintptr_t begin, end;

  Range(const void* data, const int64_t (&stride)[4], int64_t n, int64_t c, int64_t h, int64_t w) {
    const int64_t last = (n - 1) * stride[0] + (c - 1) * stride[1] + (h - 1) * stride[2] + (w - 1) * stride[3];
    begin = reinterpret_cast<uintptr_t>(data);
    end = begin + static_cast<uintptr_t>((last + 1) * 4);
  }
  bool meets(const Range& other) const { return begin < other.end && other.begin < end; }
};

Range x_range(const ConvArgs& a) { return {a.x.data, a.x.stride, a.shape.n, a.shape.c, a.shape.h, a.shape.w}; }
Range y_range(const ConvArgs& a) { return {a.y, a.y_stride, a.shape.n, a.shape.k, a.shape.p(), a.shape.q()}; }

// Is y one run of memory, channels adjacent?
bool is_dense(const ConvArgs& a) {
  const int64_t k = a.shape.k, row = a.shape.q() * k;
  return a.y_stride[1] == 1 && a.y_stride[3] == k && a.y_stride[2] == row && a.y_stride[0] == a.shape.p() * row;
}

bool is_plain(const ConvPlan& plan) {
  const ConvArgs& a = plan.args;
  return a.dtype == DType::f32 && a.y_stride[1] == 1 && (a.residual.data == nullptr || a.residual.stride[1] == 1);
}

// Does each pixel of y depend on that of x at the same place alone?
bool is_pointwise(const ConvPlan& plan) {
  const ConvShape& s = plan.args.shape;
  return plan.layout == static_cast<int32_t>(ConvLayout::direct) && s.r == 1 && s.s == 1 && s.groups == 1 &&
         s.stride_h == 1 && s.stride_w == 1 && s.p() == s.h && s.q() == s.w && plan.args.x.stride[1] == 1 &&
         is_plain(plan);
}

bool is_grouped(const ConvPlan& plan) {
  const auto layout = static_cast<ConvLayout>(plan.layout);
  const ConvShape& s = plan.args.shape;
  return (layout == ConvLayout::direct || layout == ConvLayout::narrow) && s.groups > 1 && s.groups < s.c &&
         s.dilation_h == 1 && plan.args.x.stride[1] == 1;
}

// The arguments that compute rows [begin, begin + count) of one image's y.
ConvArgs rows_of(const ConvPlan& plan, int64_t image, int64_t begin, int64_t count) {
  ConvArgs args = plan.args;
  ConvShape& shape = args.shape;
  const int64_t h0 = begin * shape.stride_h - shape.pad_top;
  const int64_t h1 = h0 + (count - 1) * shape.stride_h + (shape.r - 1) * shape.dilation_h + 1;
  const int64_t from = max(h0, 0), to = max(min(h1, shape.h), from + 1);
  const auto at = [image](const void* data, const int64_t (&stride)[4], int64_t row) {
    return const_cast<float*>(static_cast<const float*>(data)) + image * stride[0] + row * stride[2];
  };
  args.x.data = at(args.x.data, args.x.stride, from);
  args.y = at(args.y, args.y_stride, begin);
  if (args.residual.data) args.residual.data = at(args.residual.data, args.residual.stride, begin);
  shape.n = 1;
  shape.h = to - from;
  shape.pad_top = from - h0;
  shape.pad_bottom = h1 - to;
  return args;
}

void run_rows(const ConvPlan& plan, const ConvArgs& args, char* workspace) {
  alignas(8) unsigned char blocking[kConvBlockingBytes];
  plan.method->plan(args, 1, blocking);
  plan.method->run(blocking, args, weight_of(plan), workspace, serial_executor());
}

struct Chain {
  const ConvPlan *first, *second, *third;  // the last may be null
  int64_t rows;                            // of the second y
  int64_t band, ring;                      // rows
  int64_t strips, units, parts;
  int64_t ring_bytes, band_bytes, slot_bytes;
  bool moves;  // rows that the next band reads too to the beginning of the ring

  // Do the first two or three of `count` plans make a chain that pays?
  bool fits(const ConvPlan* plans, int64_t count, int threads) {
    if (count < 2) return false;
    first = plans;
    second = plans + 1;
    const ConvArgs &a = first->args, &b = second->args;
    const ConvShape& shape = b.shape;
    const bool begins = is_pointwise(*first) || (first->layout == static_cast<int32_t>(ConvLayout::merged) &&
                                                 a.shape.dilation_h == 1 && is_plain(*first));
    if (!begins || !is_dense(a) || a.residual.data || b.x.data != a.y) return false;
    moves = !is_depthwise_in_place(*second);
    if ((moves && !is_grouped(*second)) || !is_plain(*second) || b.residual.data) return false;
    // What is written while x and the first y are in use has to lie elsewhere.
    const auto apart = [&](const ConvArgs& last) {
      return !y_range(last).meets(x_range(a)) && !y_range(last).meets(y_range(a));
    };
    const bool three = count > 2 && is_dense(b) && is_pointwise(plans[2]) && plans[2].args.x.data == b.y;
    third = three && apart(plans[2].args) ? plans + 2 : nullptr;
    if (!third && !apart(b)) return false;

    rows = shape.p();
    strips = shape.n % threads == 0 ? 1 : threads;
    units = shape.n * strips;
    parts = min(threads, units);
    const int64_t in_bytes = shape.w * shape.c * 4, out_bytes = third ? shape.q() * shape.k * 4 : 0;
    if (shape.h * in_bytes / strips < kLeast) return false;
    const int64_t halo = max(shape.r - shape.stride_h, 0);
    band = (kBandBytes - halo * in_bytes) / (shape.stride_h * in_bytes + out_bytes);
    band = max(band / 2 * 2, 2);
    if (rows < 2 * strips * band) return false;
    ring = band * shape.stride_h + halo;
    ring_bytes = round_up(ring * in_bytes, kConvAlign);
    band_bytes = round_up(band * out_bytes, kConvAlign);
    if (moves && first->packed_bytes + second->packed_bytes + (third ? third->packed_bytes : 0) > kWeightBytes)
      return false;
    const auto workspace_of = [](const ConvPlan& plan, int64_t most) {
      ConvArgs args = rows_of(plan, 0, 0, most);
      // That of a band in the middle, for which no row is padding.
      args.shape.h = (most - 1) * args.shape.stride_h + args.shape.r;
      args.shape.pad_top = args.shape.pad_bottom = 0;
      alignas(8) unsigned char blocking[kConvBlockingBytes];
      return plan.method->plan(args, 1, blocking);
    };
    int64_t workspace = workspace_of(*first, ring);
    if (moves) workspace = max(workspace, workspace_of(*second, band));
    if (third) workspace = max(workspace, workspace_of(*third, band));
    slot_bytes = ring_bytes + band_bytes + round_up(workspace, kConvAlign);
    return parts * slot_bytes + kConvAlign <= shape.n * shape.h * in_bytes;
  }

  // Rows [begin, end) of an image.
  void run_strip(int64_t image, int64_t begin, int64_t end, char* slot) const {
    const ConvShape& shape = second->args.shape;
    auto* const ring_rows = reinterpret_cast<float*>(slot);
    auto* const band_rows = reinterpret_cast<float*>(slot + ring_bytes);
    char* const workspace = slot + ring_bytes + band_bytes;
    int64_t made = max(begin * shape.stride_h - shape.pad_top, 0), origin = made;  // origin: the ring's first row
    for (int64_t p = begin, size; p < end; p += size) {
      size = min(band, end - p);
      const int64_t stop = min((p + size - 1) * shape.stride_h - shape.pad_top + shape.r, shape.h);
      if (moves) {
        const int64_t row = first->args.y_stride[2], from = max(p * shape.stride_h - shape.pad_top, 0);
        if (from < made) {
          std::memmove(ring_rows, ring_rows + (from - origin) * row, static_cast<size_t>((made - from) * row) * 4);
        }
        origin = from;
        made = max(made, from);
      }
      while (made < stop) {
        const int64_t at = moves ? made - origin : made % ring, count = min(stop - made, ring - at);
        ConvArgs args = rows_of(*first, image, made, count);
        args.y = ring_rows + at * args.y_stride[2];
        run_rows(*first, args, workspace);
        made += count;
      }
      ConvArgs args = moves ? rows_of(*second, image, p, size) : second->args;
      args.x.data = ring_rows;
      args.y = band_rows;
      if (!third) args.y = static_cast<float*>(second->args.y) + image * args.y_stride[0] + p * args.y_stride[2];
      if (moves) {
        run_rows(*second, args, workspace);
      } else {
        depthwise_rows(*second, args, p, p + size, ring);
      }
      if (!third) continue;
      args = rows_of(*third, image, p, size);
      args.x.data = band_rows;
      run_rows(*third, args, workspace);
    }
  }
};

}  // namespace

int64_t run_conv_chain(const ConvPlan* plans, int64_t count, const Executor& executor) {
  Chain chain;
  if (!chain.fits(plans, count, executor.threads)) return 0;
  const auto address = static_cast<int64_t>(reinterpret_cast<uintptr_t>(plans->args.y));
  char* const slots = static_cast<char*>(plans->args.y) + (round_up(address, kConvAlign) - address);
  parallel_for(executor, 0, chain.parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) {
      for (int64_t unit = part * chain.units / chain.parts; unit < (part + 1) * chain.units / chain.parts; ++unit) {
        const int64_t strip = unit % chain.strips;
        chain.run_strip(unit / chain.strips, strip * chain.rows / chain.strips, (strip + 1) * chain.rows / chain.strips,
                        slots + part * chain.slot_bytes);
      }
    }
  });
  return chain.third ? 3 : 2;
}

}  // namespace PK_ISA
}  // namespace pk
