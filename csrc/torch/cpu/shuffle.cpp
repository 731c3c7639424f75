// shuffle: see pykernels/ops/shuffle for what it computes. shuffle_bound: the same without gradients, of several
// tensors that are joined, where `call` holds the numbers; shuffle_out: for callers who have the memory too. They are
// those of a ShuffleCall (arguments.py).
#include "pykernels/shuffle.h"

#include "torch/tensors.h"

namespace pk::binding {
namespace {

using MemoryFormat = torch::headeronly::MemoryFormat;
using Tensors = std::vector<Tensor>;

// The order is that of ShuffleCall.
struct ShuffleNumbers {
  int64_t kind, k;
};

struct Sizes {
  int64_t n, c, h, w;
};

// Of x, whose tensors are checked.
Sizes sizes_of(const char* op, const Tensors& x, const ShuffleNumbers& call) {
  check(call.kind >= 0 && call.kind < kShuffleKinds, op, "kind", "expected a code in [0, ", kShuffleKinds, "), got ",
        call.kind);
  check(call.k >= 1 && call.k <= kMostStreams, op, "k", "expected an int of 1 to ", kMostStreams, ", got ", call.k);
  check(x.size() == 1 || (call.kind == 0 && static_cast<int64_t>(x.size()) == call.k), op, "x",
        "expected one tensor, or one for each group, got ", x.size());
  for (const Tensor& t : x) {
    check_cpu(t, op, "x");
    check(t.dim() == 4, op, "x", "expected 4 dimensions, got shape ", shape_of(t));
    if (t.scalar_type() != ScalarType::Char) to_float_dtype(t.scalar_type(), op, "x");
    check_dtype(t, x[0].scalar_type(), op, "x");
    check_shape(t, {x[0].size(0), x[0].size(1), x[0].size(2), x[0].size(3)}, op, "x");
  }
  return {x[0].size(0), x[0].size(1) * static_cast<int64_t>(x.size()), x[0].size(2), x[0].size(3)};
}

// y's.
Sizes result_of(const char* op, const Sizes& x, const ShuffleNumbers& call) {
  const int64_t k = call.k, square = k * k;
  const auto kind = static_cast<ShuffleKind>(call.kind);
  if (kind == ShuffleKind::channels) {
    check(x.c % k == 0, op, "x", "expected channels that ", k, " groups divide, got ", x.c);
    return x;
  }
  check(square <= kMostStreams, op, "k", "expected a factor of 1 to 8, got ", k);
  if (kind == ShuffleKind::up) {
    check(x.c % square == 0, op, "x", "expected channels that ", square, " divides, got ", x.c);
    return {x.n, x.c / square, x.h * k, x.w * k};
  }
  check(x.h % k == 0 && x.w % k == 0, op, "x", "expected H and W that ", k, " divides, got ", x.h, " and ", x.w);
  return {x.n, x.c * square, x.h / k, x.w / k};
}

// Fails, and writes nothing, unless all tensors lie alike: channels, or columns, are adjacent in each.
Status run_into(const Tensors& x, const ShuffleNumbers& call, const Sizes& sizes, const Tensor& y) {
  ShuffleArgs args;
  args.kind = static_cast<ShuffleKind>(call.kind);
  args.n = sizes.n, args.c = sizes.c, args.h = sizes.h, args.w = sizes.w, args.k = call.k;
  args.element_bytes = element_bytes(y.scalar_type());
  args.pieces = static_cast<int64_t>(x.size());
  for (size_t i = 0; i < x.size(); ++i) {
    args.x[i] = x[i].const_data_ptr();
    for (int64_t d = 0; d < 4; ++d) args.x_stride[i][d] = x[i].stride(d);
  }
  args.y = y.mutable_data_ptr();
  for (int64_t d = 0; d < 4; ++d) args.y_stride[d] = y.stride(d);
  ShufflePlan plan;
  PK_TRY(make_plan(args, &plan));
  pk::run(plan, torch_executor());
  return kOk;
}

Tensor result(const char* op, const Tensors& x, const ShuffleNumbers& call) {
  check(!x.empty(), op, "x", "expected a tensor");
  const Sizes sizes = sizes_of(op, x, call), to = result_of(op, sizes, call);
  const bool last = is_channels_last(x[0]);
  const auto least_1 = [](int64_t size) { return size > 1 ? size : int64_t{1}; };
  const int64_t c = least_1(to.c), h = least_1(to.h), w = least_1(to.w), shape[4] = {to.n, to.c, to.h, to.w};
  const int64_t channels[4] = {c * h * w, 1, w * c, c}, planes[4] = {c * h * w, h * w, w, 1};
  const Tensor y = empty_strided(shape, last ? channels : planes, 4, x[0].scalar_type());
  if (run_into(x, call, sizes, y)) return y;
  Tensors turned;
  turned.reserve(x.size());
  for (const Tensor& t : x) {
    turned.push_back(torch::stable::contiguous(t, last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous));
  }
  check_status(run_into(turned, call, sizes, y), op);
  return y;
}

Tensor shuffle_op(Tensor x, int64_t kind, int64_t k) { return result("shuffle", {x}, {kind, k}); }

Tensor shuffle_bound_op(Tensors x, Tensor call) {
  const char* op = "shuffle_bound";
  return result(op, x, numbers_in<ShuffleNumbers, int64_t>(op, call));
}

void shuffle_out_op(Tensors x, Tensor call, Tensor out) {
  const char* op = "shuffle_out";
  check(!x.empty(), op, "x", "expected a tensor");
  const auto numbers = numbers_in<ShuffleNumbers, int64_t>(op, call);
  const Sizes sizes = sizes_of(op, x, numbers), to = result_of(op, sizes, numbers);
  check_out(out, x[0].scalar_type(), {to.n, to.c, to.h, to.w}, op);
  if (run_into(x, numbers, sizes, out)) return;
  torch::stable::copy_(out, result(op, x, numbers));
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(pykernels, m) {
  m.def("shuffle(Tensor x, int kind, int k) -> Tensor");
  m.def("shuffle_bound(Tensor[] x, Tensor call) -> Tensor");
  m.def("shuffle_out(Tensor[] x, Tensor call, Tensor(a!) out) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(pykernels, CPU, m) {
  m.impl("shuffle", TORCH_BOX(&shuffle_op));
  m.impl("shuffle_bound", TORCH_BOX(&shuffle_bound_op));
  m.impl("shuffle_out", TORCH_BOX(&shuffle_out_op));
}

}  // namespace pk::binding
