// Memory for what many calls read from end to end, such as packed weights: on huge pages, where Linux gives them to who
// asks. With small pages every 4 KB that are read need another entry of the TLB (docs/kernels/conv_bn_act/cpu.md).
#pragma once

#include <cstdint>

#ifdef __linux__
#include <sys/mman.h>
#endif

#include "torch/tensors.h"

namespace pk::binding {

inline constexpr int64_t kHugePage = int64_t{2} << 20;

// Asks for huge pages for what fills them of these bytes. Advice, which may not be taken.
inline void ask_for_huge_pages(void* memory, int64_t bytes) {
#ifdef MADV_HUGEPAGE
  constexpr auto kPage = static_cast<uintptr_t>(kHugePage);
  const auto begin = reinterpret_cast<uintptr_t>(memory), end = begin + static_cast<uintptr_t>(bytes);
  const uintptr_t first = (begin + kPage - 1) / kPage * kPage, last = end / kPage * kPage;
  if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#else
  (void)memory, (void)bytes;
#endif
}

// All but a page of `memory`, bytes in one dimension, on huge pages: they hold no more than what is wanted, so that
// none is wasted. What is left over lies on small ones; the pages before and behind nobody touches.
inline Tensor on_huge_pages(const Tensor& memory) {
  const int64_t bytes = memory.numel() - kHugePage, stride = 1;
  auto* const begin = static_cast<char*>(memory.mutable_data_ptr());
  const auto before = static_cast<int64_t>(-reinterpret_cast<uintptr_t>(begin) % static_cast<uintptr_t>(kHugePage));
  ask_for_huge_pages(begin + before, bytes);
  AtenTensorHandle handle;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch__reinterpret_tensor(memory.get(), 1, &bytes, &stride, before, &handle));
  return Tensor(handle);
}

// Bytes, not filled. Less than one page lies on small ones.
inline Tensor empty_on_huge_pages(int64_t bytes) {
  if (bytes < kHugePage) return empty({bytes}, ScalarType::Byte);
  return on_huge_pages(empty({bytes + kHugePage}, ScalarType::Byte));
}

}  // namespace pk::binding
