// Memory for what many calls read from end to end, such as packed weights: on huge pages, where Linux gives them to who
// asks. With small pages every 4 KB that are read need another entry of the TLB (docs/kernels/conv_bn_act/cpu.md).
#pragma once

#include <cstdint>

#ifdef __linux__
#include <sys/mman.h>
#endif

#include "torch/tensors.h"

namespace pk::binding {

// Asks for huge pages for what fills them of these bytes. Advice, which may not be taken.
inline void ask_for_huge_pages(void* memory, int64_t bytes) {
#ifdef MADV_HUGEPAGE
  constexpr uintptr_t kPage = uintptr_t{2} << 20;
  const auto begin = reinterpret_cast<uintptr_t>(memory), end = begin + static_cast<uintptr_t>(bytes);
  const uintptr_t first = (begin + kPage - 1) / kPage * kPage, last = end / kPage * kPage;
  if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#else
  (void)memory, (void)bytes;
#endif
}

// Bytes, not filled. Huge pages hold no more than these, so that none is wasted: what is left over, and all of less
// than one page, lies on small ones. The tensor is a view of a slightly larger one, whose other pages nobody touches.
inline Tensor empty_on_huge_pages(int64_t bytes) {
#ifdef MADV_HUGEPAGE
  constexpr int64_t kPage = int64_t{2} << 20;
  if (bytes >= kPage) {
    const Tensor memory = empty({bytes + kPage}, ScalarType::Byte);
    const auto address = reinterpret_cast<uintptr_t>(memory.mutable_data_ptr());
    const int64_t before = static_cast<int64_t>(-address % static_cast<uintptr_t>(kPage)), stride = 1;
    ask_for_huge_pages(reinterpret_cast<void*>(address + static_cast<uintptr_t>(before)), bytes);
    AtenTensorHandle handle;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch__reinterpret_tensor(memory.get(), 1, &bytes, &stride, before, &handle));
    return Tensor(handle);
  }
#endif
  return empty({bytes}, ScalarType::Byte);
}

}  // namespace pk::binding
