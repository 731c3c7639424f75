// The entry points. A plan checks the call, and puts dimensions in y's order together until few are left: of tensors of
// one memory format a single one. A run cuts them into rows, or, where x has another order, into tiles.
#include "common/sizes.h"
#include "cpu/int8_pointwise/kernels.h"
#include "cpu/parallel_for.h"

namespace pk {
namespace {

using Args = Int8PointwiseArgs;
using Kind = Int8PointwiseKind;
using Plan = Int8PointwisePlan;
using Dim = Int8PointwisePlan::Dim;

constexpr int64_t kGrain = 32768;  // elements that are worth waking a thread for
constexpr int64_t kTileRows = 64, kTileColumns = 1024;

Status check_zero(int32_t zero) {
  if (zero < -128 || zero > 127) return {"zero_point: expected a number in [-128, 127]"};
  return kOk;
}

Status check_activation(Activation activation) {
  const auto code = static_cast<int32_t>(activation);
  if (code < 0 || code >= kActivations) return {"activation: expected an Activation"};
  return kOk;
}

int64_t magnitude(int64_t stride) { return stride < 0 ? -stride : stride; }
int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Fills plan->dims with those of more than one element.
void merge(const Args& a, Plan* plan) {
  Dim sorted[kInt8PointwiseDims];
  int64_t count = 0;
  for (int64_t d = 0; d < a.dim; ++d) {
    if (a.size[d] == 1) continue;
    int64_t at = count++;
    for (; at > 0 && magnitude(sorted[at - 1].y) < magnitude(a.y_stride[d]); --at) sorted[at] = sorted[at - 1];
    sorted[at] = {a.size[d], a.x_stride[d], a.kind == Kind::add ? a.b_stride[d] : a.x_stride[d], a.y_stride[d]};
  }
  plan->dim = 0;
  for (int64_t i = 0; i < count; ++i) {
    const Dim& next = sorted[i];
    Dim* const last = plan->dim > 0 ? &plan->dims[plan->dim - 1] : nullptr;
    if (last && last->x == next.size * next.x && last->b == next.size * next.b && last->y == next.size * next.y) {
      *last = {last->size * next.size, next.x, next.b, next.y};
    } else {
      plan->dims[plan->dim++] = next;
    }
  }
  if (plan->dim == 0) plan->dims[plan->dim++] = {1, 1, 1, 1};
  if (plan->dim == 1) {
    plan->dims[1] = plan->dims[0];
    plan->dims[0] = {1, 0, 0, 0};
    plan->dim = 2;
  }
}

// Where something is in each tensor.
struct Place {
  int64_t x = 0, b = 0, y = 0;

  void move(const Dim& d, int64_t steps) { x += steps * d.x, b += steps * d.b, y += steps * d.y; }
};

// Of element 0 of the last two dimensions, for the place `i` in those before.
Place place_of(const Plan& plan, int64_t i) {
  Place place;
  for (int64_t d = plan.dim - 3; d >= 0; --d) {
    place.move(plan.dims[d], i % plan.dims[d].size);
    i /= plan.dims[d].size;
  }
  return place;
}

Int8Block block_at(const Args& a, const Place& place, int64_t rows, int64_t count) {
  const auto wide = static_cast<int64_t>(size_of(a.dtype));
  Int8Block block = {};
  block.rows = rows, block.count = count;
  block.x = static_cast<const char*>(a.x) + (a.kind == Kind::quantize ? wide : 1) * place.x;
  if (a.b != nullptr) block.b = static_cast<const char*>(a.b) + place.b;
  block.y = static_cast<char*>(a.y) + (a.kind == Kind::dequantize ? wide : 1) * place.y;
  return block;
}

void run_tiles(const Plan& plan, int64_t outer, const Executor& executor) {
  // x's rows go along `high`, y's along `wide`.
  const Dim &high = plan.dims[plan.dim - 2], &wide = plan.dims[plan.dim - 1];
  const int64_t across = ceil_div(high.size, kTileColumns), tiles = across * ceil_div(wide.size, kTileRows);
  const int64_t grain = ceil_div(kGrain * tiles, high.size * wide.size);
  parallel_for(executor, 0, outer * tiles, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      Place place = place_of(plan, i / tiles);
      const int64_t row = i % tiles / across * kTileRows, column = i % across * kTileColumns;
      place.move(wide, row);
      place.move(high, column);
      const int64_t rows = wide.size - row, columns = high.size - column;
      Int8Block block = block_at(plan.args, place, rows < kTileRows ? rows : kTileRows,
                                 columns < kTileColumns ? columns : kTileColumns);
      block.x_step = wide.x, block.y_step = high.y;
      plan.kernels->turned(plan.args, block);
    }
  });
}

}  // namespace

Status make_plan(const Args& a, Plan* plan) {
  const auto kind = static_cast<int32_t>(a.kind);
  if (kind < 0 || kind >= kInt8PointwiseKinds) return {"kind: expected an Int8PointwiseKind"};
  if (a.dtype != DType::f32 && a.dtype != DType::bf16) return {"x: expected float32 or bfloat16"};
  if (a.dim < 0 || a.dim > kInt8PointwiseDims) return {"x: expected at most 8 dimensions"};
  for (const int32_t zero : {a.x_zero, a.b_zero, a.y_zero}) PK_TRY(check_zero(zero));
  PK_TRY(check_activation(a.activation));
  if (a.kind == Kind::lookup && a.table == nullptr) return {"table: expected 256 bytes"};
  int64_t elements = 1;
  for (int64_t d = 0; d < a.dim; ++d) {
    if (a.size[d] < 0 || !product_fits({elements, a.size[d], 4})) return {"x: the sizes are too large"};
    elements *= a.size[d];
  }
  *plan = {};
  plan->args = a;
  Isa isa;
  PK_TRY(active_isa(&isa));
  plan->kernels = PK_DOT4_TABLE_OF(int8_pointwise_kernels, isa);
  if (elements == 0) return kOk;
  merge(a, plan);
  Dim* const last = &plan->dims[plan->dim - 1];
  if (last->y != 1) return {"out: expected adjacent elements"};
  if (last->x == 1 && last->b == 1) return kOk;
  for (Dim* d = plan->dims; d < last && (a.kind == Kind::quantize || a.kind == Kind::dequantize); ++d) {
    if (d->x != 1) continue;
    const Dim found = *d;
    for (; d + 1 < last; ++d) *d = d[1];
    *d = found;
    plan->turned = true;
    return kOk;
  }
  return {"x: expected adjacent elements"};
}

void run(const Plan& plan, const Executor& executor) {
  if (plan.dim == 0) return;
  int64_t outer = 1;
  for (int64_t d = 0; d < plan.dim - 2; ++d) outer *= plan.dims[d].size;
  if (plan.turned) return run_tiles(plan, outer, executor);
  const Dim &high = plan.dims[plan.dim - 2], &wide = plan.dims[plan.dim - 1];
  if (outer * high.size == 1) {
    parallel_for(executor, 0, wide.size, kGrain, [&](int64_t begin, int64_t end) {
      plan.kernels->rows(plan.args, block_at(plan.args, {begin, begin, begin}, 1, end - begin));
    });
    return;
  }
  parallel_for(executor, 0, outer * high.size, ceil_div(kGrain, wide.size), [&](int64_t begin, int64_t end) {
    while (begin < end) {
      const int64_t row = begin % high.size, left = high.size - row;
      const int64_t rows = end - begin < left ? end - begin : left;
      Place place = place_of(plan, begin / high.size);
      place.move(high, row);
      Int8Block block = block_at(plan.args, place, rows, wide.size);
      block.x_step = high.x, block.b_step = high.b, block.y_step = high.y;
      plan.kernels->rows(plan.args, block);
      begin += rows;
    }
  });
}

Status make_plan(const Int8AffineArgs& args, Int8AffinePlan* plan) {
  PK_TRY(check_zero(args.y_zero));
  PK_TRY(check_activation(args.activation));
  for (const int64_t size : {args.n, args.c, args.h, args.w}) {
    if (size < 0) return {"x: expected sizes that are not negative"};
  }
  if (!product_fits({args.n + 1, args.c + 1, args.h + 1, args.w + 1})) return {"x: the sizes are too large"};
  int64_t channels = 0;
  for (int64_t i = 0; i < args.pieces; ++i) channels += args.x[i].channels;
  if (channels != args.c) return {"x: expected pieces with as many channels together as scale and shift are for"};
  Isa isa;
  PK_TRY(active_isa(&isa));
  *plan = {args, PK_DOT4_TABLE_OF(int8_affine_kernels, isa)};
  return kOk;
}

void run(const Int8AffinePlan& plan, const Executor& executor) {
  Int8AffineArgs a = plan.args;
  if (a.n * a.c * a.h * a.w == 0) return;
  // Are the rows of all images one? And channels adjacent?
  bool one = a.y_stride[2] == a.w * a.y_stride[3], adjacent = a.y_stride[1] == 1;
  for (int64_t i = 0; i < a.pieces; ++i) {
    const Int8Piece& x = a.x[i];
    one &= x.channels == 0 || x.stride[2] == a.w * x.stride[3];
    adjacent &= x.channels <= 1 || x.stride[1] == 1;
  }
  if (one || a.h == 1) a.w *= a.h, a.h = 1;
  const bool by_planes = !adjacent || a.c == 1;
  const auto body = by_planes ? plan.kernels->planes : plan.kernels->channels;
  const int64_t pixels = a.h * a.w;
  parallel_for(executor, 0, a.n * (by_planes ? a.c : pixels), ceil_div(kGrain, by_planes ? pixels : a.c),
               [&](int64_t begin, int64_t end) { body(a, begin, end); });
}

}  // namespace pk
