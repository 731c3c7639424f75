// on_huge_pages: for memory that Python has mapped (pykernels/_huge.py).
#include "torch/huge_pages.h"

#include "torch/boxed.h"

namespace pk::binding {
namespace {

Tensor on_huge_pages_op(Tensor memory) {
  const char* op = "on_huge_pages";
  check_cpu(memory, op, "memory");
  check_dtype(memory, ScalarType::Byte, op, "memory");
  check(memory.dim() == 1 && memory.is_contiguous() && memory.numel() >= kHugePage, op, "memory", "expected at least ",
        kHugePage, " contiguous bytes in one dimension, got ", memory.numel());
  return on_huge_pages(memory);
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(pykernels, m) { m.def("on_huge_pages(Tensor(a) memory) -> Tensor(a)"); }

STABLE_TORCH_LIBRARY_IMPL(pykernels, CPU, m) { m.impl("on_huge_pages", TORCH_BOX(&on_huge_pages_op)); }

}  // namespace pk::binding
