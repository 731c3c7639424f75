// pykernels._native._introspect: what this build can do and what it would choose. No tensors, no torch.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstring>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "pykernels/conv_bn_act.h"
#include "pykernels/isa.h"

namespace py = pybind11;

namespace {

template <class Predicate>
std::vector<std::string> isas(Predicate predicate) {
  std::vector<std::string> names;
  for (int i = 0; i < pk::kIsas; ++i) {
    const auto isa = static_cast<pk::Isa>(i);
    if (predicate(isa)) names.emplace_back(pk::isa_name(isa));
  }
  return names;
}

void raise_if(pk::Status status) {
  if (!status) throw py::value_error(status.error);
}

std::string active() {
  pk::Isa isa;
  raise_if(pk::active_isa(&isa));
  return pk::isa_name(isa);
}

using Four = std::array<int64_t, 4>;
using Two = std::array<int64_t, 2>;

int conv_algorithm(Four x, Four weight, Two stride, Four padding, Two dilation, int64_t groups, bool packs) {
  const pk::ConvShape shape = {x[0],       x[1],        x[2],        x[3],       weight[0],  weight[2],
                               weight[3],  stride[0],   stride[1],   padding[0], padding[1], padding[2],
                               padding[3], dilation[0], dilation[1], groups};
  auto algorithm = pk::ConvAlgorithm::direct;
  if (x[1] == weight[1] * groups) {
    const pk::Status status = pk::conv_choose(shape, packs, &algorithm);
    // Impossible shapes are for the op to refuse; a setting of the environment is nobody else's.
    if (!status && std::strncmp(status.error, "PYKERNELS_", 10) == 0) raise_if(status);
  }
  return static_cast<int>(algorithm);
}

}  // namespace

PYBIND11_MODULE(_introspect, m) {
  m.doc() = "CPU features, the choice of instruction set and algorithm, and how the library was built.";
  m.def(
      "isas_compiled", [] { return isas(pk::isa_compiled); }, "ISAs that this build has kernels for, in rising order.");
  m.def("isas_supported", [] { return isas(pk::isa_supported); }, "ISAs that this CPU and operating system can run.");
  m.def("active_isa", &active, "The ISA in force. ValueError if PYKERNELS_ISA asks for what cannot be had.");
  m.def(
      "force_isa",
      [](const std::optional<std::string>& name) { raise_if(pk::force_isa(name ? name->c_str() : nullptr)); },
      py::arg("name").none(true), "Force an ISA for the process; None returns to PYKERNELS_ISA or detection.");
  m.def(
      "conv_algorithm", &conv_algorithm, py::arg("x"), py::arg("weight"), py::arg("stride"), py::arg("padding"),
      py::arg("dilation"), py::arg("groups"), py::kw_only(), py::arg("packs") = false,
      "The algorithm for conv_pack that is likely fastest for these shapes: 0 direct, 1 winograd4, 2 winograd2; 0 for "
      "shapes that do not go together. With `packs`, packing the weight for the one call counts.");
  m.def(
      "build_info",
      [] {
        return std::map<std::string, std::string>{
            {"compiler", PK_COMPILER}, {"torch", PK_TORCH_VERSION}, {"build type", PK_BUILD_TYPE}};
      },
      "Compiler, the torch that it was built against, build type.");
}
