// The entries of pykernels/lstm.h: a plan validates the call and picks the ISA, whose kernels then run.
#include "cpu/lstm/checks.h"
#include "cpu/lstm/kernels.h"
#include "cpu/lstm/layout.h"

namespace pk {
namespace {

Status pick(const LstmKernels** kernels) {
  Isa isa;
  const Status status = active_isa(&isa);
  if (status) *kernels = PK_TABLE_OF(lstm_kernels, isa);
  return status;
}

// Hidden units, and the features of the widest layer's input, rounded up to any ISA's vectors and panels.
int64_t padded_units(const LstmShape& s) { return s.hidden + 64; }
int64_t padded_input(const LstmShape& s) { return widest_input(s) + 64; }

Status check_shape(const LstmShape& s) {
  PK_TRY(check_float(s));
  if (s.hidden < 1 || s.hidden > 1 << 24) return {"hidden: expected 1 to 2^24 units"};
  if (s.input < 0 || s.input > 1 << 24) return {"input: expected 0 to 2^24 features"};
  PK_TRY(check_layers(s));
  if (!product_fits({s.layers, s.directions, 4, padded_units(s), padded_input(s) + padded_units(s), 4}))
    return {"layers, input, hidden: the weights are too large"};
  return kOk;
}

Status check_call(const LstmShape& s) {
  PK_TRY(check_shape(s));
  PK_TRY(check_sequences(s));
  // The bytes of gates, reserve and copies of the sequences; the multiply-adds of a layer.
  if (!product_fits({s.steps, s.batch + 1, s.directions, s.layers, 6, padded_units(s), 4}) ||
      !product_fits({s.steps, s.batch + 1, s.directions, 4, padded_units(s), padded_input(s)}))
    return {"steps, batch, hidden: the sequences are too large"};
  return kOk;
}

// Is `packed` what lstm_pack makes for this shape and this many lanes? Its dtype goes to `weights`.
Status check_packed(const LstmShape& shape, int lanes, const void* packed, int64_t bytes, DType* weights) {
  LstmHeader h;
  if (bytes < kHeaderBytes) return {"packed: too short to be a block of packed LSTM weights"};
  std::memcpy(&h, packed, sizeof h);
  if (std::memcmp(h.magic, kLstmMagic, sizeof kLstmMagic) != 0) return {"packed: not a block of packed LSTM weights"};
  if (h.version != 1) return {"packed: packed by another version of pykernels; pack the weights again"};
  if (h.lanes != lanes) return {"packed: packed for another instruction set; pack the weights again"};
  if (h.dtype != static_cast<int32_t>(shape.dtype) && h.dtype != static_cast<int32_t>(DType::i8))
    return {"packed: packed from weights of another dtype"};
  *weights = static_cast<DType>(h.dtype);
  if (h.input != shape.input) return {"packed: packed for another input size"};
  if (h.hidden != shape.hidden) return {"packed: packed for another hidden size"};
  if (h.layers != shape.layers) return {"packed: packed for another number of layers"};
  if (h.directions != shape.directions) return {"packed: packed for another number of directions"};
  if (h.bytes != bytes || bytes != packed_bytes_of(shape, *weights, h.lanes))
    return {"packed: truncated or overlong block of packed LSTM weights"};
  return kOk;
}

// What both passes' plans have in common.
template <class Plan, class Args>
Status begin_plan(const Args& args, Plan* plan) {
  PK_TRY(pick(&plan->kernels));
  const LstmShape& s = args.shape;
  PK_TRY(check_call(s));
  plan->args = args;
  plan->reserve_elements = lstm_rows(s) * s.directions * (s.layers * reserve_row(s) + (s.layers - 1) * s.hidden);
  return kOk;
}

Status plan_packing(const LstmShape& shape, DType weights, LstmPackingPlan* plan) {
  plan->shape = shape;
  plan->weights = weights;
  PK_TRY(pick(&plan->kernels));
  PK_TRY(check_shape(shape));
  plan->packed_bytes = packed_bytes_of(shape, weights, plan->kernels->lanes);
  return kOk;
}

void write_header(const LstmPackingPlan& plan, void* packed) {
  const LstmShape& shape = plan.shape;
  LstmHeader header{};
  std::memcpy(header.magic, kLstmMagic, sizeof kLstmMagic);
  header.version = 1;
  header.lanes = plan.kernels->lanes;
  header.dtype = static_cast<int32_t>(plan.weights);
  header.layers = shape.layers;
  header.directions = shape.directions;
  header.bias = shape.bias;
  header.input = shape.input;
  header.hidden = shape.hidden;
  header.bytes = plan.packed_bytes;
  std::memset(packed, 0, kHeaderBytes);
  std::memcpy(packed, &header, sizeof header);
}

}  // namespace

Status make_packing_plan(const LstmShape& shape, LstmPackingPlan* plan) {
  return plan_packing(shape, shape.dtype, plan);
}
Status make_int8_packing_plan(const LstmShape& shape, LstmPackingPlan* plan) {
  return plan_packing(shape, DType::i8, plan);
}

void pack(const LstmPackingPlan& plan, const void* const* weights, void* packed, const Executor& executor) {
  write_header(plan, packed);
  plan.kernels->pack(plan.shape, weights, packed, executor);
}
void pack(const LstmPackingPlan& plan, const Int8LstmWeights* weights, void* packed, const Executor& executor) {
  write_header(plan, packed);
  plan.kernels->pack_int8(plan.shape, weights, packed, executor);
}

Status make_plan(const LstmForwardArgs& args, int threads, LstmForwardPlan* plan) {
  PK_TRY(begin_plan(args, plan));
  plan->weights = args.shape.dtype;
  if (args.packed) {
    PK_TRY(check_packed(args.shape, plan->kernels->lanes, args.packed, args.packed_bytes, &plan->weights));
  } else if (!args.weights) {
    return {"weights: expected weights or packed weights"};
  }
  if (!args.save) plan->reserve_elements = 0;
  plan->kernels->plan_forward(plan, threads);
  return kOk;
}

void run(const LstmForwardPlan& plan, void* workspace, const Executor& executor) {
  if (plan.args.shape.batch > 0) plan.kernels->forward(plan, workspace, executor);
}

Status make_plan(const LstmBackwardArgs& args, int threads, LstmBackwardPlan* plan) {
  PK_TRY(begin_plan(args, plan));
  plan->kernels->plan_backward(plan, threads);
  return kOk;
}

void run(const LstmBackwardPlan& plan, void* workspace, const Executor& executor) {
  const LstmBackwardArgs& args = plan.args;
  const LstmShape& s = args.shape;
  if (s.batch > 0) return plan.kernels->backward(plan, workspace, executor);
  // No sequences: the weights' gradients are zero, everything else is empty.
  for (int i = 0; i < lstm_weights(s); ++i) {
    const int per_cell = s.bias ? 4 : 2, which = i % per_cell;
    const int64_t columns = which == 0 ? lstm_input(s, i / per_cell / s.directions) : which == 1 ? s.hidden : 1;
    std::memset(args.grad_weights[i], 0, static_cast<size_t>(4 * s.hidden * columns) * size_of(s.dtype));
  }
}

}  // namespace pk
