// The entries of pykernels/cuda/lstm.h: a plan checks the call and chooses; forward.cu and backward.cu run it.
#include "cuda/lstm/backward_kernels.h"
#include "cuda/lstm/kernels.h"
#include "cuda/lstm/layout.h"

namespace pk::cuda {
namespace {

Status check_shape(const LstmShape& s) {
  if (s.dtype != DType::f32 && s.dtype != DType::bf16 && s.dtype != DType::f16) {
    return {"dtype: expected float32, bfloat16 or float16"};
  }
  if (s.hidden < 1 || s.hidden > 1 << 20) return {"hidden: expected 1 to 2^20 units"};
  if (s.input < 0 || s.input > 1 << 24) return {"input: expected 0 to 2^24 features"};
  if (s.layers < 1 || s.layers > 1 << 16) return {"layers: expected 1 to 2^16"};
  if (s.directions != 1 && s.directions != 2) return {"directions: expected 1 or 2"};
  return kOk;
}

// Is the shape one that the kernels take, and no size behind it beyond 64 bits?
Status check_call(const LstmShape& s) {
  PK_TRY(check_shape(s));
  if (s.steps < 1 || s.steps > 1 << 30) return {"steps: expected 1 to 2^30"};
  if (s.batch < 0 || s.batch > 1 << 24) return {"batch: expected 0 to 2^24"};
  const int64_t widest = (s.input > 2 * s.hidden ? s.input : 2 * s.hidden) + 64;
  // Below 2^31 * 2^16 * 2 rows of states and, in all, 2^59 bytes of anything.
  int64_t rows = 0, bytes = 0;
  if (__builtin_mul_overflow(s.steps * (s.batch + 1), widest * 8, &rows) ||
      __builtin_mul_overflow(rows, int64_t{s.layers} * 8, &bytes) || bytes > int64_t{1} << 59) {
    return {"steps, batch, hidden: the sequences are too large"};
  }
  if (!s.batch_sizes) return kOk;
  if (!s.starts) return {"batch_sizes: expected lstm_starts to have read them"};
  if (s.batch_sizes[0] != s.batch) return {"batch_sizes: expected the first to be the batch"};
  return kOk;
}

int64_t packed_bytes_of(const LstmShape& s) { return lstm::packed_parts(s, s.layers - 1, s.directions - 1).end; }

}  // namespace

Status make_packing_plan(const LstmShape& shape, LstmPackingPlan* plan) {
  PK_TRY(check_shape(shape));
  *plan = {shape, packed_bytes_of(shape)};
  return kOk;
}

Status pack(const LstmPackingPlan& plan, const void* const* weights, void* packed, void* stream) {
  const LstmShape& shape = plan.shape;
  const int per_cell = shape.bias ? 4 : 2;
  char* const to = static_cast<char*>(packed);
  for (int cell = 0; cell < shape.layers * shape.directions; ++cell) {
    const int layer = cell / shape.directions;
    const lstm::PackedParts parts = lstm::packed_parts(shape, layer, cell % shape.directions);
    const void* const* w = weights + cell * per_cell;
    PK_TRY(lstm::pack(shape.dtype, w[0], to + parts.w_ih, shape.hidden, lstm_input(shape, layer), parts.input_pitch,
                      stream));
    PK_TRY(lstm::pack(shape.dtype, w[1], to + parts.w_hh, shape.hidden, shape.hidden, parts.hidden_pitch, stream));
    PK_TRY(lstm::pack_bias(shape.dtype, shape.bias ? w[2] : nullptr, shape.bias ? w[3] : nullptr,
                           reinterpret_cast<float*>(to + parts.bias), shape.hidden, stream));
  }
  return kOk;
}

Status make_plan(const LstmForwardArgs& args, LstmForwardPlan* plan) {
  const LstmShape& s = args.shape;
  PK_TRY(check_call(s));
  if (!args.weights && !args.packed) return {"weights: expected weights or packed weights"};
  if (args.packed && args.packed_bytes != packed_bytes_of(s)) {
    return {"packed: expected what lstm_pack makes of weights of these sizes and dtype, on a CUDA device"};
  }
  *plan = {};
  plan->args = args;
  if (s.batch == 0) return kOk;
  Device device;
  PK_TRY(current_device(&device));
  plan->multiprocessors = device.multiprocessors;
  plan->choice = lstm::choose(s, device, args.path);
  if ((args.path == LstmPath::persistent || args.path == LstmPath::cluster) && !plan->choice.persistent) {
    return {"path: the recurrent weights don't fit on the device, or the batch is too large"};
  }
  if (args.save) plan->reserve_elements = lstm_reserve_output(s, s.layers - 1);
  plan->workspace_bytes = lstm::forward_workspace(*plan);
  return kOk;
}

Status run(const LstmForwardPlan& plan, void* workspace, void* stream) {
  return plan.args.shape.batch == 0 ? kOk : lstm::run_forward(plan, workspace, stream);
}

Status make_plan(const LstmBackwardArgs& args, LstmBackwardPlan* plan) {
  const LstmShape& s = args.shape;
  PK_TRY(check_call(s));
  if (lstm_rows(s) > 1 << 30) return {"steps, batch: expected at most 2^30 rows"};
  *plan = {};
  plan->args = args;
  plan->reserve_elements = lstm_reserve_output(s, s.layers - 1);
  if (s.batch == 0) return kOk;
  Device device;
  PK_TRY(current_device(&device));
  return lstm::plan_backward(device, plan);
}

Status run(const LstmBackwardPlan& plan, void* workspace, void* stream) {
  const LstmBackwardArgs& args = plan.args;
  return args.shape.batch == 0 ? lstm::clear_gradients(args, stream) : lstm::run_backward(plan, workspace, stream);
}

}  // namespace pk::cuda
