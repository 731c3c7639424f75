// pykernels._native._introspect: what this build can do. No tensors, no torch.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <map>
#include <optional>
#include <string>
#include <vector>

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

}  // namespace

PYBIND11_MODULE(_introspect, m) {
  m.doc() = "CPU features, the choice of instruction set, and how the library was built.";
  m.def(
      "isas_compiled", [] { return isas(pk::isa_compiled); }, "ISAs that this build has kernels for, in rising order.");
  m.def("isas_supported", [] { return isas(pk::isa_supported); }, "ISAs that this CPU and operating system can run.");
  m.def("active_isa", &active, "The ISA in force. ValueError if PYKERNELS_ISA asks for what cannot be had.");
  m.def(
      "force_isa",
      [](const std::optional<std::string>& name) { raise_if(pk::force_isa(name ? name->c_str() : nullptr)); },
      py::arg("name").none(true), "Force an ISA for the process; None returns to PYKERNELS_ISA or detection.");
  m.def(
      "build_info",
      [] {
        return std::map<std::string, std::string>{{"compiler", PK_COMPILER},
                                                  {"torch", PK_TORCH_VERSION},
                                                  {"build type", PK_BUILD_TYPE},
                                                  {"cuda", "not built"}};
      },
      "Compiler, the torch that it was built against, build type.");
}
