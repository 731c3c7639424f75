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
  if (const Status status = check_shape(s); !status) return status;
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

}  // namespace

Status lstm_packed_bytes(const LstmShape& shape, int64_t* bytes) {
  if (const Status status = check_shape(shape); !status) return status;
  *bytes = lstm::packed_parts(shape, shape.layers - 1, shape.directions - 1).end;
  return kOk;
}

Status lstm_pack(const LstmShape& shape, const void* const* weights, void* packed, void* stream) {
  if (const Status status = check_shape(shape); !status) return status;
  const int per_cell = shape.bias ? 4 : 2;
  char* const to = static_cast<char*>(packed);
  for (int cell = 0; cell < shape.layers * shape.directions; ++cell) {
    const int layer = cell / shape.directions;
    const lstm::PackedParts parts = lstm::packed_parts(shape, layer, cell % shape.directions);
    const void* const* w = weights + cell * per_cell;
    if (const Status status = lstm::pack(shape.dtype, w[0], to + parts.w_ih, shape.hidden, lstm_input(shape, layer),
                                         parts.input_pitch, stream);
        !status) {
      return status;
    }
    if (const Status status =
            lstm::pack(shape.dtype, w[1], to + parts.w_hh, shape.hidden, shape.hidden, parts.hidden_pitch, stream);
        !status) {
      return status;
    }
    if (const Status status = lstm::pack_bias(shape.dtype, shape.bias ? w[2] : nullptr, shape.bias ? w[3] : nullptr,
                                              reinterpret_cast<float*>(to + parts.bias), shape.hidden, stream);
        !status) {
      return status;
    }
  }
  return kOk;
}

Status make_plan(const LstmForward& call, LstmForwardPlan* plan) {
  const LstmShape& s = call.shape;
  if (const Status status = check_call(s); !status) return status;
  if (!call.weights && !call.packed) return {"weights: expected weights or packed weights"};
  *plan = {};
  plan->call = call;
  if (s.batch == 0) return kOk;
  Device device;
  if (const Status status = current_device(&device); !status) return status;
  plan->multiprocessors = device.multiprocessors;
  plan->choice = lstm::choose(s, device, call.path);
  if ((call.path == LstmPath::persistent || call.path == LstmPath::cluster) && !plan->choice.persistent) {
    return {"path: the recurrent weights don't fit on the device, or the batch is too large"};
  }
  if (call.save) plan->reserve_elements = lstm_reserve_output(s, s.layers - 1);
  plan->workspace_bytes = lstm::forward_workspace(*plan);
  return kOk;
}

Status run(const LstmForwardPlan& plan, void* workspace, void* stream) {
  return plan.call.shape.batch == 0 ? kOk : lstm::run_forward(plan, workspace, stream);
}

Status make_plan(const LstmBackward& call, LstmBackwardPlan* plan) {
  const LstmShape& s = call.shape;
  if (const Status status = check_call(s); !status) return status;
  if (lstm_rows(s) > 1 << 30) return {"steps, batch: expected at most 2^30 rows"};
  *plan = {};
  plan->call = call;
  if (s.batch == 0) return kOk;
  Device device;
  if (const Status status = current_device(&device); !status) return status;
  return lstm::plan_backward(device, plan);
}

Status run(const LstmBackwardPlan& plan, void* workspace, void* stream) {
  const LstmBackward& call = plan.call;
  return call.shape.batch == 0 ? lstm::clear_gradients(call, stream) : lstm::run_backward(plan, workspace, stream);
}

}  // namespace pk::cuda
