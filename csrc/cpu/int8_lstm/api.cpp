// The entries of pykernels/int8_lstm.h: a plan validates the call and picks the ISA, whose kernels then run.
#include "cpu/int8_lstm/kernels.h"
#include "cpu/int8_lstm/layout.h"
#include "cpu/lstm/checks.h"

namespace pk {
namespace {

Status pick(const Int8LstmKernels** kernels) {
  Isa isa;
  const Status status = active_isa(&isa);
  if (status) *kernels = PK_DOT4_TABLE_OF(int8_lstm_kernels, isa);
  return status;
}

Status check_weights(const LstmShape& s) {
  if (s.hidden < 1 || s.hidden > kInt8MaxK) return {"hidden: expected 1 to 131071 units"};
  if (s.input < 0 || s.input > kInt8MaxK) return {"input: expected 0 to 131071 features"};
  PK_TRY(check_layers(s));
  if (s.layers > 1 && s.directions * s.hidden > kInt8MaxK)
    return {"hidden: expected 131071 outputs of a layer at the most"};
  return kOk;
}

Status check_call(const LstmShape& s) {
  PK_TRY(check_weights(s));
  PK_TRY(check_float(s));
  PK_TRY(check_sequences(s));
  // The bytes of gates, of copies of the sequences and of what threads have; the multiply-adds of a layer.
  if (!product_fits({s.steps, s.batch + 1, s.directions, 12, s.hidden + 64, 4}) ||
      !product_fits({s.batch + 1, s.directions, s.hidden + 64, 1 << 16}) ||
      !product_fits({s.steps, s.batch + 1, s.directions, 4, s.hidden + 64, widest_input(s) + 64}))
    return {"steps, batch, hidden: the sequences are too large"};
  return kOk;
}

// Is `packed` what pack makes for this shape and these kernels?
Status check_packed(const LstmShape& s, const Int8LstmKernels& kernels, const void* packed, int64_t bytes) {
  Int8LstmHeader h;
  if (packed == nullptr || bytes < kHeaderBytes) return {"packed: too short to be packed weights of int8_lstm_pack"};
  std::memcpy(&h, packed, sizeof h);
  if (std::memcmp(h.magic, kInt8LstmMagic, sizeof h.magic) != 0)
    return {"packed: expected packed weights of int8_lstm_pack, but the first bytes are others"};
  if (h.version != kInt8LstmVersion) return {"packed: packed by another version of pykernels; pack the weights again"};
  if (h.lanes != kernels.lanes || h.group != kernels.group)
    return {"packed: packed for another instruction set; pack the weights again"};
  if (h.input != s.input) return {"packed: packed for another input size"};
  if (h.hidden != s.hidden) return {"packed: packed for another hidden size"};
  if (h.layers != s.layers) return {"packed: packed for another number of layers"};
  if (h.directions != s.directions) return {"packed: packed for another number of directions"};
  if (h.bytes != bytes || bytes != int8_packed_bytes_of(s, h.lanes))
    return {"packed: truncated or overlong packed weights"};
  return kOk;
}

}  // namespace

Status make_packing_plan(const LstmShape& shape, Int8LstmPackingPlan* plan) {
  plan->shape = shape;
  PK_TRY(pick(&plan->kernels));
  PK_TRY(check_weights(shape));
  plan->packed_bytes = int8_packed_bytes_of(shape, plan->kernels->lanes);
  return kOk;
}

void pack(const Int8LstmPackingPlan& plan, const Int8LstmWeights* weights, void* packed, const Executor& executor) {
  const LstmShape& s = plan.shape;
  Int8LstmHeader header{};
  std::memcpy(header.magic, kInt8LstmMagic, sizeof header.magic);
  header.version = kInt8LstmVersion;
  header.lanes = plan.kernels->lanes;
  header.group = plan.kernels->group;
  header.layers = s.layers;
  header.directions = s.directions;
  header.bias = s.bias;
  header.input = s.input;
  header.hidden = s.hidden;
  header.bytes = plan.packed_bytes;
  std::memset(packed, 0, kHeaderBytes);
  std::memcpy(packed, &header, sizeof header);
  plan.kernels->pack(s, weights, static_cast<char*>(packed), executor);
}

Status make_plan(const Int8LstmArgs& args, int threads, Int8LstmPlan* plan) {
  PK_TRY(pick(&plan->kernels));
  PK_TRY(check_call(args.shape));
  PK_TRY(check_packed(args.shape, *plan->kernels, args.packed, args.packed_bytes));
  plan->args = args;
  plan->kernels->plan(plan, threads);
  return kOk;
}

void run(const Int8LstmPlan& plan, void* workspace, const Executor& executor) {
  if (plan.args.shape.batch > 0) plan.kernels->run(plan, workspace, executor);
}

}  // namespace pk
