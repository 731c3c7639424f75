// The device of the CPU's ops, as OnDevice (csrc/torch/cuda/checks.h) is CUDA's: what an op that is written once for
// both asks of it. plan, pack_by and run_by call the kernel API's make_plan, pack and run for the plan's type.
#pragma once

#include "torch/huge_pages.h"
#include "torch/tensors.h"

namespace pk::binding {

class OnCpu {
 public:
  OnCpu(const char* op, const Tensor& first, const char* argument) : op_(op) { check(first, argument); }

  void check(const Tensor& t, const char* argument) const { check_cpu(t, op_, argument); }
  DType dtype(ScalarType t, const char* argument) const { return to_dtype(t, op_, argument); }
  DType float_dtype(ScalarType t, const char* argument) const { return to_float_dtype(t, op_, argument); }
  Tensor empty(const std::vector<int64_t>& sizes, ScalarType dtype) const {
    const Tensor t =
        sizes.size() > 4 ? torch::stable::empty(sizes, dtype) : binding::empty(sizes.data(), sizes.size(), dtype);
    // glibc maps so much memory anew for every tensor: with small pages, the first writes to each would take longer
    // than to compute many of them.
    constexpr int64_t kAlwaysNew = int64_t{32} << 20;
    const int64_t bytes = t.numel() * static_cast<int64_t>(t.element_size());
    if (bytes >= kAlwaysNew) ask_for_huge_pages(t.mutable_data_ptr(), bytes);
    return t;
  }
  static Tensor empty_packed(int64_t bytes, ScalarType) { return empty_on_huge_pages(bytes); }
  // The LSTM's packed weights are bytes behind a header, its reserve is float32.
  static ScalarType packed_dtype(ScalarType) { return ScalarType::Byte; }
  static ScalarType reserve_dtype(ScalarType) { return ScalarType::Float; }

  template <class Args, class Plan>
  void plan(const Args& args, Plan* plan) const {
    if constexpr (requires { make_plan(args, 1, plan); }) {
      check_status(make_plan(args, executor_.threads, plan), op_);
    } else {
      check_status(make_plan(args, plan), op_);
    }
  }
  template <class Plan, class... Args>
  void pack_by(const Plan& plan, const Args&... args) const {
    pack(plan, args..., executor_);
  }
  template <class Plan>
  void run_by(const Plan& plan) const {
    if constexpr (requires { plan.workspace_bytes; }) {
      run(plan, Scratch(plan.workspace_bytes).data(), executor_);
    } else {
      run(plan, executor_);
    }
  }

 private:
  const char* op_;
  Executor executor_ = torch_executor();
};

}  // namespace pk::binding
