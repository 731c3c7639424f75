// The entry points. A plan checks the call and finds out how the image lies in memory. A run cuts it into rows of
// pixels, or into planes.
//
// The kernels weave streams. Where channels are adjacent, the streams are a pixel's groups, or the pixels of a square.
// Where columns are adjacent, they are the rows of a square's columns. A channel shuffle of adjacent columns copies row
// by row.
#include <cstring>

#include "common/sizes.h"
#include "cpu/parallel_for.h"
#include "cpu/shuffle/kernels.h"

namespace pk {
namespace {

using Args = ShuffleArgs;

// The least that a thread is woken for, in elements.
constexpr int64_t kGrain = 16384;

const char* x_at(const Args& a, int64_t piece, int64_t n, int64_t c, int64_t h, int64_t w) {
  const int64_t* s = a.x_stride[piece];
  return static_cast<const char*>(a.x[piece]) + a.element_bytes * (n * s[0] + c * s[1] + h * s[2] + w * s[3]);
}
char* y_at(const Args& a, int64_t n, int64_t c, int64_t h, int64_t w) {
  const int64_t* s = a.y_stride;
  return static_cast<char*>(a.y) + a.element_bytes * (n * s[0] + c * s[1] + h * s[2] + w * s[3]);
}
// A stream that is read is not written to.
char* read_only(const char* p) { return const_cast<char*>(p); }

// Row h of image n, whose channels are adjacent: of x, but for `down`, which gives row h of y.
void row_of_channels(const ShufflePlan& plan, int64_t n, int64_t h) {
  const Args& a = plan.args;
  const int64_t bytes = a.element_bytes, k = a.k;
  Weave call;
  call.bytes = bytes;
  call.streams = a.kind == ShuffleKind::channels ? k : k * k;
  call.times = a.kind == ShuffleKind::down ? a.w / k : a.w;
  switch (a.kind) {
    case ShuffleKind::channels: {
      call.count = a.c / k;
      for (int64_t g = 0; g < k; ++g) {
        const int64_t piece = a.pieces > 1 ? g : 0;
        call.stream[g] = read_only(x_at(a, piece, n, a.pieces > 1 ? 0 : g * call.count, h, 0));
        call.step[g] = bytes * a.x_stride[piece][3];
      }
      call.whole = y_at(a, n, 0, h, 0);
      call.whole_step = bytes * a.y_stride[3];
      return plan.kernels->weave(call);
    }
    case ShuffleKind::up:
      call.count = a.c / (k * k);
      for (int64_t s = 0; s < k * k; ++s) {
        call.stream[s] = y_at(a, n, 0, h * k + s / k, s % k);
        call.step[s] = bytes * k * a.y_stride[3];
      }
      call.whole = read_only(x_at(a, 0, n, 0, h, 0));
      call.whole_step = bytes * a.x_stride[0][3];
      return plan.kernels->unravel(call);
    case ShuffleKind::down:
      call.count = a.c;
      for (int64_t s = 0; s < k * k; ++s) {
        call.stream[s] = read_only(x_at(a, 0, n, 0, h * k + s / k, s % k));
        call.step[s] = bytes * k * a.x_stride[0][3];
      }
      call.whole = y_at(a, n, 0, h, 0);
      call.whole_step = bytes * a.y_stride[3];
      return plan.kernels->weave(call);
  }
}

// What channel c of y (for `down`, of x) takes of image n, where columns are adjacent.
void plane(const ShufflePlan& plan, int64_t n, int64_t c) {
  const Args& a = plan.args;
  const int64_t bytes = a.element_bytes, k = a.k;
  if (a.kind == ShuffleKind::channels) {
    const int64_t each = a.c / k, piece = a.pieces > 1 ? c % k : 0;
    const int64_t from = (a.pieces > 1 ? 0 : c % k * each) + c / k;
    const bool whole = a.x_stride[piece][2] == a.w && a.y_stride[2] == a.w;
    const int64_t rows = whole ? 1 : a.h, size = bytes * a.w * (whole ? a.h : 1);
    for (int64_t h = 0; h < rows; ++h) {
      std::memcpy(y_at(a, n, c, h, 0), x_at(a, piece, n, from, h, 0), static_cast<size_t>(size));
    }
    return;
  }
  const bool up = a.kind == ShuffleKind::up;
  Weave call;
  call.bytes = bytes, call.streams = k;
  call.times = up ? a.h : a.h / k, call.count = up ? a.w : a.w / k;
  for (int64_t i = 0; i < k; ++i) {
    for (int64_t j = 0; j < k; ++j) {
      const int64_t channel = (c * k + i) * k + j;
      call.stream[j] = up ? read_only(x_at(a, 0, n, channel, 0, 0)) : y_at(a, n, channel, 0, 0);
      call.step[j] = bytes * (up ? a.x_stride[0][2] : a.y_stride[2]);
    }
    call.whole = up ? y_at(a, n, c, i, 0) : read_only(x_at(a, 0, n, c, i, 0));
    call.whole_step = bytes * k * (up ? a.y_stride[2] : a.x_stride[0][2]);
    (up ? plan.kernels->weave : plan.kernels->unravel)(call);
  }
}

}  // namespace

Status make_plan(const ShuffleArgs& a, ShufflePlan* plan) {
  const auto kind = static_cast<int32_t>(a.kind);
  if (kind < 0 || kind >= kShuffleKinds) return {"kind: expected a ShuffleKind"};
  if (a.element_bytes != 1 && a.element_bytes != 2 && a.element_bytes != 4) {
    return {"x: expected elements of 1, 2 or 4 bytes"};
  }
  if (a.n < 0 || a.c < 0 || a.h < 0 || a.w < 0) return {"x: expected sizes that are not negative"};
  if (!product_fits({a.n + 1, a.c + 1, a.h + 1, a.w + 1, 4})) return {"x: the sizes are too large"};
  const bool channels = a.kind == ShuffleKind::channels;
  if (a.k < 1 || a.k > kMostStreams || (!channels && a.k * a.k > kMostStreams)) {
    return {"k: expected 1 to 64 groups, or a factor of 1 to 8"};
  }
  if (channels && a.c % a.k) return {"x: expected channels that the groups divide"};
  if (a.kind == ShuffleKind::up && a.c % (a.k * a.k)) return {"x: expected channels that the factor's square divides"};
  if (a.kind == ShuffleKind::down && (a.h % a.k || a.w % a.k)) return {"x: expected H and W that the factor divides"};
  if (a.pieces != 1 && !(channels && a.pieces == a.k)) return {"x: expected one tensor, or one for each group"};
  const int64_t y_c = a.kind == ShuffleKind::up ? a.c / (a.k * a.k) : a.c * (channels ? 1 : a.k * a.k);
  const int64_t y_w = a.kind == ShuffleKind::up ? a.w * a.k : channels ? a.w : a.w / a.k;
  bool by_channels = y_c <= 1 || a.y_stride[1] == 1, by_columns = y_w <= 1 || a.y_stride[3] == 1;
  for (int64_t i = 0; i < a.pieces; ++i) {
    by_channels = by_channels && (a.c / a.pieces <= 1 || a.x_stride[i][1] == 1);
    by_columns = by_columns && (a.w <= 1 || a.x_stride[i][3] == 1);
  }
  if (!by_channels && !by_columns) return {"x: expected channels, or columns, to be adjacent in x and y alike"};
  Isa isa;
  PK_TRY(active_isa(&isa));
  *plan = {a, PK_TABLE_OF(shuffle_kernels, isa), by_channels};
  return kOk;
}

void run(const ShufflePlan& plan, const Executor& executor) {
  const Args& a = plan.args;
  if (a.n * a.c * a.h * a.w == 0) return;
  const bool down = a.kind == ShuffleKind::down;
  const int64_t planes = a.kind == ShuffleKind::up ? a.c / (a.k * a.k) : a.c, rows = down ? a.h / a.k : a.h;
  const int64_t parts = plan.by_channels ? rows : planes;  // of an image
  parallel_for(executor, 0, a.n * parts, kGrain * parts / (a.c * a.h * a.w) + 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      (plan.by_channels ? row_of_channels : plane)(plan, i / parts, i % parts);
    }
  });
}

}  // namespace pk
