// upsample2d: see pykernels/ops/upsample2d for what it computes. `size` may be empty where the scales tell: its ints
// are constants of a trace. upsample2d_out: the same for callers who have the memory, which tells the size; `call`
// holds mode, scale_h and scale_w.
#include "pykernels/upsample2d.h"

#include "torch/conv_bn_act.h"
#include "torch/tensors.h"

namespace pk::binding {
namespace {

struct Scaling {
  double mode, scale_h, scale_w;
};

void strides_of(const Tensor& t, int64_t (&strides)[4]) {
  for (int64_t i = 0; i < 4; ++i) strides[i] = t.stride(i);
}

DType dtype_of(const char* op, const Tensor& x) {
  return x.scalar_type() == ScalarType::Char ? DType::i8 : to_float_dtype(x.scalar_type(), op, "x");
}

void run_into(const char* op, const Tensor& x, const Scaling& call, const Tensor& y) {
  Upsample2dArgs args;
  args.mode = static_cast<UpsampleMode>(call.mode);
  args.dtype = dtype_of(op, x);
  args.n = x.size(0), args.c = x.size(1), args.h = x.size(2), args.w = x.size(3);
  args.p = y.size(2), args.q = y.size(3);
  args.scale_h = call.scale_h, args.scale_w = call.scale_w;
  args.x = data_of(x);
  args.y = y.mutable_data_ptr();
  strides_of(x, args.x_stride);
  strides_of(y, args.y_stride);
  Upsample2dPlan plan;
  check_status(make_plan(args, &plan), op);
  pk::run(plan, torch_executor());
}

Scaling scaling_in(const char* op, const Tensor& call) {
  const auto scaling = numbers_in<Scaling, double>(op, call);
  check(scaling.mode >= 0 && scaling.mode < kUpsampleModes, op, "call", "expected a mode of 0 to ", kUpsampleModes - 1,
        ", got ", scaling.mode);
  return scaling;
}

Tensor run_new(const char* op, const Tensor& x, Ints size, const Scaling& call) {
  check_cpu(x, op, "x");
  check_dim(x, 4, op, "x");
  if (size.empty()) {
    for (const double scale : {call.scale_h, call.scale_w}) {
      check(scale > 0 && scale <= 1 << 30, op, "scale_factor",
            "expected a number above 0, because no size is given; got ", scale);
    }
    size = {static_cast<int64_t>(static_cast<double>(x.size(2)) * call.scale_h),
            static_cast<int64_t>(static_cast<double>(x.size(3)) * call.scale_w)};
  }
  check_length(size, 2, op, "size");
  check(size[0] >= 1 && size[1] >= 1, op, "size", "expected ints >= 1, got (", size[0], ", ", size[1], ")");
  dtype_of(op, x);
  const Tensor y = empty_image(x, size[0], size[1]);
  run_into(op, x, call, y);
  return y;
}

Tensor upsample2d_op(Tensor x, Ints size, double scale_h, double scale_w, int64_t mode) {
  const char* op = "upsample2d";
  check(mode >= 0 && mode < kUpsampleModes, op, "mode", "expected 0 to ", kUpsampleModes - 1, ", got ", mode);
  return run_new(op, x, size, {static_cast<double>(mode), scale_h, scale_w});
}

Tensor upsample2d_bound_op(Tensor x, Ints size, Tensor call) {
  const char* op = "upsample2d_bound";
  return run_new(op, x, size, scaling_in(op, call));
}

void upsample2d_out_op(Tensor x, Tensor call, Tensor out) {
  const char* op = "upsample2d_out";
  check_cpu(x, op, "x");
  check_dim(x, 4, op, "x");
  const Scaling scaling = scaling_in(op, call);
  check_dim(out, 4, op, "out");
  check_out(out, x.scalar_type(), {x.size(0), x.size(1), out.size(2), out.size(3)}, op);
  run_into(op, x, scaling, out);
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(pykernels, m) {
  m.def("upsample2d(Tensor x, int[] size, float scale_h, float scale_w, int mode) -> Tensor");
  m.def("upsample2d_bound(Tensor x, int[] size, Tensor call) -> Tensor");
  m.def("upsample2d_out(Tensor x, Tensor call, Tensor(a!) out) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(pykernels, CPU, m) {
  m.impl("upsample2d", TORCH_BOX(&upsample2d_op));
  m.impl("upsample2d_bound", TORCH_BOX(&upsample2d_bound_op));
  m.impl("upsample2d_out", TORCH_BOX(&upsample2d_out_op));
}

}  // namespace pk::binding
