// Tensors for outputs and scratch, made without torch's dispatcher, which takes longer than a small kernel.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include <initializer_list>
#include <optional>

#include "torch/checks.h"

namespace pk::binding {

// Not filled, on `device` or the CPU.
inline Tensor empty_strided(const int64_t* sizes, const int64_t* strides, size_t dim, ScalarType dtype,
                            const Tensor* device = nullptr) {
  int32_t type = aoti_torch_device_type_cpu(), index = 0;
  if (device != nullptr) {
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(device->get(), &type));
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(device->get(), &index));
  }
  const auto code = torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype));
  AtenTensorHandle handle;
  if (aoti_torch_empty_strided(static_cast<int64_t>(dim), sizes, strides, code, type, index, &handle) !=
      AOTI_TORCH_SUCCESS) {
    std::ostringstream message;
    message << "pykernels: no memory for a " << dtype_name(dtype) << " tensor of shape (";
    for (size_t i = 0; i < dim; ++i) message << (i ? ", " : "") << sizes[i];
    throw std::runtime_error(message.str() + ")");
  }
  return Tensor(handle);
}

// The same, contiguous, of at most four dimensions.
inline Tensor empty(const int64_t* sizes, size_t dim, ScalarType dtype, const Tensor* device = nullptr) {
  int64_t strides[4], stride = 1;
  for (size_t i = dim; i-- > 0;) {
    strides[i] = stride;
    if (sizes[i] > 1) stride *= sizes[i];  // as torch has it, where one is 0 too
  }
  return empty_strided(sizes, strides, dim, dtype, device);
}

inline Tensor empty(std::initializer_list<int64_t> sizes, ScalarType dtype) {
  return empty(sizes.begin(), sizes.size(), dtype);
}

// Of an image of these sizes, (n, c, h, w), in a memory format, as torch has them: no size counts as less than 1.
inline void image_strides(const int64_t (&sizes)[4], bool channels_last, int64_t (&strides)[4]) {
  const auto at_least_1 = [](int64_t size) { return size > 1 ? size : int64_t{1}; };
  const int64_t c = at_least_1(sizes[1]), h = at_least_1(sizes[2]), w = at_least_1(sizes[3]);
  const int64_t planes[4] = {c * h * w, h * w, w, 1}, last[4] = {c * h * w, 1, w * c, c};
  std::memcpy(strides, channels_last ? last : planes, sizeof strides);
}

// An uninitialised image with the pixels of another size, in x's memory format, as torch gives it; of x's dtype, or of
// another one.
inline Tensor empty_image(const Tensor& x, int64_t height, int64_t width, std::optional<ScalarType> dtype = {}) {
  const int64_t sizes[4] = {x.size(0), x.size(1), height, width};
  int64_t strides[4];
  image_strides(sizes, is_channels_last(x), strides);
  return empty_strided(sizes, strides, 4, dtype ? *dtype : x.scalar_type());
}

// The memory of `t` by other sizes and strides, from its first element on.
inline Tensor view_of(const Tensor& t, const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides) {
  AtenTensorHandle handle;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch__reinterpret_tensor(t.get(), static_cast<int64_t>(sizes.size()),
                                                               sizes.data(), strides.data(), 0, &handle));
  return Tensor(handle);
}

// Asking first costs less than a call of an op that has nothing to do.
inline Tensor dense(const Tensor& t) { return t.is_contiguous() ? t : torch::stable::contiguous(t); }

// A contiguous last dimension is all that the rows of a matrix, or a sequence, need.
inline Tensor last_contiguous(const Tensor& t) {
  return t.stride(t.dim() - 1) == 1 || t.size(t.dim() - 1) <= 1 ? t : torch::stable::contiguous(t);
}

// An empty tensor has no address, and a null one means "not packed".
inline const void* packed_data(const Tensor& t) {
  alignas(16) static const char nothing = 0;
  return t.numel() ? t.const_data_ptr() : &nothing;
}

// Scratch memory of a call; little of it lies on the stack.
class Scratch {
 public:
  explicit Scratch(int64_t bytes) {
    if (bytes > static_cast<int64_t>(sizeof small_)) large_ = empty({bytes}, ScalarType::Byte);
  }
  void* data() { return large_ ? large_->mutable_data_ptr() : small_; }

 private:
  alignas(64) char small_[16384];
  std::optional<Tensor> large_;
};

}  // namespace pk::binding
