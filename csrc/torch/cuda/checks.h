// What the CUDA half of the binding adds to checks.h: tensors on one CUDA device, that device made current, torch's
// current stream on it, and outputs and workspace from torch's allocator (which a captured graph keeps alive).
//
// It compiles against a CPU-only torch, with USE_CUDA defined.
#pragma once

#ifndef USE_CUDA
#error "compile the CUDA binding with -DUSE_CUDA: torch declares its stream functions only then"
#endif

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include "torch/checks.h"

namespace pk::binding {

using torch::headeronly::MemoryFormat;

// A tensor's device, for a message.
struct DeviceOf {
  const Tensor& tensor;
};
inline DeviceOf device_of(const Tensor& t) { return {t}; }
inline std::ostream& operator<<(std::ostream& to, DeviceOf device) {
  if (device.tensor.is_cuda()) return to << "cuda:" << device.tensor.get_device_index();
  return to << (device.tensor.is_cpu() ? "the CPU" : "another device");
}

// The device of an op's first tensor, current for as long as this lives. Make one at the start of every op:
//
//   const OnDevice on(op, x, "x");
//   on.check(weight, "weight");
//   const Tensor out = on.empty({m, n}, x.scalar_type());
//   on.plan(args, &plan);    // make_plan, pack and run of pk::cuda, by the plan's type
//   on.run_by(plan);
//
// Nothing here waits for the device. Tensors that die at the op's end may be used by its kernels still: torch's
// allocator gives their memory only to later work of the same stream.
class OnDevice {
 public:
  OnDevice(const char* op, const Tensor& first, const char* argument)
      : op_(op), first_(argument), index_(checked_index(op, first, argument)), guard_(index_) {
    // Torch's macro that checks such codes is younger than 2.11.
    if (aoti_torch_get_current_cuda_stream(index_, &stream_) != AOTI_TORCH_SUCCESS) {
      fail(op, argument, "torch has no current stream for cuda:", index_);
    }
  }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

  void check(const Tensor& t, const char* argument) const {
    if (t.is_cuda() && t.get_device_index() == index_) return;
    fail(op_, argument, "expected a tensor on cuda:", index_, ", as ", first_, " is, got one on ", device_of(t));
  }
  void check(const std::optional<Tensor>& t, const char* argument) const {
    if (t) check(*t, argument);
  }

  DType dtype(ScalarType t, const char* argument) const { return to_dtype(t, op_, argument, true); }
  DType float_dtype(ScalarType t, const char* argument) const { return to_float_dtype(t, op_, argument, true); }

  // The numbers of a float vector (n), or null for none; `kept` owns them.
  const float* vector(const std::optional<Tensor>& t, int64_t n, const char* argument,
                      std::optional<Tensor>* kept) const {
    if (!t) return nullptr;
    check(*t, argument);
    check_dtype(*t, ScalarType::Float, op_, argument);
    check_shape(*t, {n}, op_, argument);
    *kept = torch::stable::contiguous(*t);
    return static_cast<const float*>((*kept)->const_data_ptr());
  }

  Tensor empty(const std::vector<int64_t>& sizes, ScalarType dtype,
               MemoryFormat format = MemoryFormat::Contiguous) const {
    return torch::stable::empty(sizes, dtype, std::nullopt, device(), std::nullopt, format);
  }

  Tensor empty_packed(int64_t elements, ScalarType dtype) const { return empty({elements}, dtype); }

  // The LSTM's packed weights and reserve are of its own dtype.
  static ScalarType packed_dtype(ScalarType dtype) { return dtype; }
  static ScalarType reserve_dtype(ScalarType dtype) { return dtype; }

  template <class... Args>
  void plan(const Args&... args) const {
    check_status(make_plan(args...), op_);
  }
  template <class Plan, class... Args>
  void pack_by(const Plan& plan, const Args&... args) const {
    check_status(pack(plan, args..., stream_), op_);
  }
  // args: what the run reads besides the plan.
  template <class Plan, class... Args>
  void run_by(const Plan& plan, const Args&... args) const {
    if constexpr (requires { plan.workspace_bytes; }) {
      // Aligned to 256 bytes at least (512 with torch's own allocator).
      const Tensor memory = empty({plan.workspace_bytes}, ScalarType::Byte);
      check_status(run(plan, args..., memory.mutable_data_ptr(), stream_), op_);
    } else {
      check_status(run(plan, args..., stream_), op_);
    }
  }

 private:
  static int32_t checked_index(const char* op, const Tensor& t, const char* argument) {
    binding::check(t.is_cuda(), op, argument, "expected a CUDA tensor, got one on ", device_of(t));
    return t.get_device_index();
  }
  torch::stable::Device device() const { return {torch::headeronly::DeviceType::CUDA, index_}; }

  const char* op_;
  const char* first_;
  int32_t index_;
  torch::stable::accelerator::DeviceGuard guard_;
  void* stream_ = nullptr;
};

}  // namespace pk::binding
