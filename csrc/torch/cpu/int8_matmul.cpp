// The int8 family's schemas and CPU implementations.
#include "torch/int8_matmul.h"

#include "torch/cpu/on_cpu.h"

STABLE_TORCH_LIBRARY_FRAGMENT(pykernels, m) {
  m.def(
      "int8_matmul(Tensor a, Tensor b, Tensor? a_scale, Tensor? b_scale, Tensor? a_zero_point, Tensor? bias, "
      "int activation, ScalarType out_dtype) -> Tensor");
  m.def("int8_pack(Tensor b) -> Tensor");
  m.def(
      "int8_matmul_packed(Tensor a, Tensor packed, SymInt n, Tensor? a_scale, Tensor? b_scale, Tensor? a_zero_point, "
      "Tensor? bias, int activation, ScalarType out_dtype) -> Tensor");
  m.def("int8_linear(Tensor x, Tensor b, Tensor b_scale, Tensor? bias, int activation) -> Tensor");
  m.def(
      "int8_linear_packed(Tensor x, Tensor packed, SymInt n, Tensor b_scale, Tensor? bias, int activation) -> Tensor");
  m.def("quantize_int8(Tensor x, int axis, bool symmetric) -> (Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(pykernels, CPU, m) {
  using namespace pk;
  binding::Int8Ops<binding::OnCpu, Int8MatmulArgs, Int8MatmulPlan, Int8PackingPlan, QuantizeInt8Plan>::implement(m);
}
