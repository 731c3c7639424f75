// The entry points. A plan checks the call, and puts dimensions in y's order together until few are left: of tensors of
// one memory format a single one. A run cuts them into rows, or, where x has another order, into tiles.
#include "common/sizes.h"
#include "cpu/int8_pointwise/kernels.h"
#include "cpu/parallel_for.h"

namespace pk {
namespace {

using Args = Int8PointwiseArgs;

constexpr int64_t kGrain = 32768;  // elements that are worth waking a thread for
constexpr int64_t kTileRows = 64, kTileColumns = 1024;

bool is_int8(int32_t zero_point) { return zero_point >= -128 && zero_point <= 127; }

int64_t magnitude(int64_t stride) { return stride < 0 ? -stride : stride; }

// Of `to`, the dimensions of `a` with more than one element, those of larger steps in y first, and merged where they
// can be.
void merge(const Args& a, Args* to) {
  int64_t order[kInt8PointwiseDims], count = 0;
  for (int64_t d = 0; d < a.dim; ++d) {
    if (a.size[d] == 1) continue;
    int64_t at = count++;
    for (; at > 0 && magnitude(a.y_stride[order[at - 1]]) < magnitude(a.y_stride[d]); --at) order[at] = order[at - 1];
    order[at] = d;
  }
  to->dim = 0;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t d = order[i], last = to->dim - 1, size = a.size[d];
    if (last >= 0 && to->x_stride[last] == size * a.x_stride[d] && to->y_stride[last] == size * a.y_stride[d]) {
      to->size[last] *= size, to->x_stride[last] = a.x_stride[d], to->y_stride[last] = a.y_stride[d];
      continue;
    }
    to->size[last + 1] = size, to->x_stride[last + 1] = a.x_stride[d], to->y_stride[last + 1] = a.y_stride[d];
    ++to->dim;
  }
  while (to->dim < 2) {  // there are always rows and columns
    for (int64_t i = to->dim; i > 0; --i) {
      to->size[i] = to->size[i - 1], to->x_stride[i] = to->x_stride[i - 1], to->y_stride[i] = to->y_stride[i - 1];
    }
    to->size[0] = 1, to->x_stride[0] = to->y_stride[0] = to->dim == 0 ? 1 : 0;
    ++to->dim;
  }
}

// Makes `d` the last dimension but one.
void move_before_last(Args* a, int64_t d) {
  const int64_t size = a->size[d], x = a->x_stride[d], y = a->y_stride[d], to = a->dim - 2;
  for (int64_t i = d; i < to; ++i) {
    a->size[i] = a->size[i + 1], a->x_stride[i] = a->x_stride[i + 1], a->y_stride[i] = a->y_stride[i + 1];
  }
  a->size[to] = size, a->x_stride[to] = x, a->y_stride[to] = y;
}

// Where the first element of the last two dimensions is, for the place `i` in those before.
struct Place {
  int64_t x = 0, y = 0;
};
Place place_of(const Args& a, int64_t i) {
  Place place;
  for (int64_t d = a.dim - 3; d >= 0; --d) {
    place.x += i % a.size[d] * a.x_stride[d];
    place.y += i % a.size[d] * a.y_stride[d];
    i /= a.size[d];
  }
  return place;
}

int64_t x_bytes(const Args& a) { return a.kind != Int8PointwiseKind::quantize ? 1 : a.dtype == DType::f32 ? 4 : 2; }
int64_t y_bytes(const Args& a) { return a.kind != Int8PointwiseKind::dequantize ? 1 : a.dtype == DType::f32 ? 4 : 2; }

Int8Block block_at(const Args& a, const Place& place, int64_t rows, int64_t count) {
  Int8Block block = {};
  block.rows = rows, block.count = count;
  block.x = static_cast<const char*>(a.x) + x_bytes(a) * place.x;
  block.y = static_cast<char*>(a.y) + y_bytes(a) * place.y;
  return block;
}

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace

Status make_plan(const Args& a, Int8PointwisePlan* plan) {
  const auto kind = static_cast<int32_t>(a.kind);
  if (kind < 0 || kind >= kInt8PointwiseKinds) return {"kind: expected an Int8PointwiseKind"};
  if (a.dtype != DType::f32 && a.dtype != DType::bf16) return {"x: expected float32 or bfloat16"};
  if (a.dim < 0 || a.dim > kInt8PointwiseDims) return {"x: expected at most 8 dimensions"};
  if (!is_int8(a.x_zero) || !is_int8(a.y_zero)) return {"zero_point: expected a number in [-128, 127]"};
  int64_t elements = 1;
  for (int64_t d = 0; d < a.dim; ++d) {
    if (a.size[d] < 0 || !product_fits({elements, a.size[d], 4})) return {"x: the sizes are too large"};
    elements *= a.size[d];
  }
  *plan = {a, nullptr, false};
  Isa isa;
  PK_TRY(active_isa(&isa));
  plan->kernels = PK_VNNI_TABLE_OF(int8_pointwise_kernels, isa);
  if (elements == 0) return kOk;
  Args& to = plan->args;
  merge(a, &to);
  const int64_t last = to.dim - 1;
  if (to.y_stride[last] != 1) return {"out: expected adjacent elements"};
  if (to.x_stride[last] == 1) return kOk;
  for (int64_t d = 0; d < last; ++d) {
    if (to.x_stride[d] != 1) continue;
    move_before_last(&to, d);
    plan->turned = true;
    return kOk;
  }
  return {"x: expected adjacent elements"};
}

void run(const Int8PointwisePlan& plan, const Executor& executor) {
  const Args& a = plan.args;
  int64_t outer = 1;
  for (int64_t d = 0; d < a.dim; ++d) {
    if (a.size[d] == 0) return;
    if (d < a.dim - 2) outer *= a.size[d];
  }
  const int64_t rows = a.size[a.dim - 2], columns = a.size[a.dim - 1];
  const int64_t *x_stride = a.x_stride + a.dim - 2, *y_stride = a.y_stride + a.dim - 2;
  if (plan.turned) {
    // x's rows go along the last dimension, y's the other way.
    const int64_t across = ceil_div(rows, kTileColumns), down = ceil_div(columns, kTileRows), tiles = across * down;
    const int64_t grain = ceil_div(kGrain * tiles, rows * columns);
    parallel_for(executor, 0, outer * tiles, grain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        Place place = place_of(a, i / tiles);
        const int64_t column = i % tiles / across * kTileRows, row = i % across * kTileColumns;
        place.x += row + column * x_stride[1];
        place.y += row * y_stride[0] + column;
        const int64_t high = columns - column, wide = rows - row;
        Int8Block block =
            block_at(a, place, high < kTileRows ? high : kTileRows, wide < kTileColumns ? wide : kTileColumns);
        block.x_step = x_stride[1], block.y_step = y_stride[0];
        plan.kernels->turned(a, block);
      }
    });
    return;
  }
  if (outer * rows == 1) {
    parallel_for(executor, 0, columns, kGrain, [&](int64_t begin, int64_t end) {
      plan.kernels->rows(a, block_at(a, {begin, begin}, 1, end - begin));
    });
    return;
  }
  parallel_for(executor, 0, outer * rows, ceil_div(kGrain, columns), [&](int64_t begin, int64_t end) {
    while (begin < end) {
      const int64_t row = begin % rows, count = end - begin < rows - row ? end - begin : rows - row;
      Place place = place_of(a, begin / rows);
      place.x += row * x_stride[0], place.y += row * y_stride[0];
      Int8Block block = block_at(a, place, count, columns);
      block.x_step = x_stride[0], block.y_step = y_stride[0];
      plan.kernels->rows(a, block);
      begin += count;
    }
  });
}

}  // namespace pk
