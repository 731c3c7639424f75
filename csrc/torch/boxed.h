// Kernels that take what is not a tensor as one struct, for torch's dispatcher: what TORCH_BOX does, and the schema's
// text.
//
//   struct Call {
//     double eps;
//     bool training;
//     void each(auto&& field) { field("eps", eps), field("training=False", training); }
//   };
//   Tensor op(Tensor x, Call call);
//
//   define<Call>(m, "op(Tensor x, {}) -> Tensor");
//   m.impl("op", &boxed<&op>);
#pragma once

#include <torch/csrc/stable/library.h>

#include <string>
#include <tuple>
#include <type_traits>
#include <utility>

#include "torch/checks.h"

namespace pk::binding {

using Ints = std::vector<int64_t>;

// What a struct of arguments has: `each`.
struct AnyField {
  template <class T>
  void operator()(const char*, T&) const {}
};
template <class T>
concept HasFields = requires(T call, AnyField field) { call.each(field); };

inline const char* schema_type(const Ints&) { return "int[] "; }
inline const char* schema_type(int64_t) { return "int "; }
inline const char* schema_type(double) { return "float "; }
inline const char* schema_type(bool) { return "bool "; }
inline const char* schema_type(ScalarType) { return "ScalarType "; }

// `schema` with T's fields in the place of "{}".
template <HasFields T>
void define(torch::stable::detail::StableLibrary& library, std::string schema) {
  std::string fields;
  T{}.each([&fields](const char* name, const auto& field) {
    fields.append(fields.empty() ? "" : ", ").append(schema_type(field)).append(name);
  });
  library.def(schema.replace(schema.find("{}"), 2, fields).c_str());
}

template <class T>
uint64_t stack_size() {
  uint64_t count = 0;
  if constexpr (HasFields<T>) {
    T{}.each([&count](const char*, const auto&) { ++count; });
  } else {
    count = 1;
  }
  return count;
}

// Reads one parameter, and leaves `stack` behind it.
template <class T>
T taken(StableIValue*& stack) {
  if constexpr (HasFields<T>) {
    T call{};
    call.each([&stack]<class Field>(const char*, Field& field) { field = taken<Field>(stack); });
    return call;
  } else {
    return torch::stable::detail::to<T>(*stack++);
  }
}

template <class Result>
void put(StableIValue* stack, const Result& result) {
  *stack = torch::stable::detail::from(result);
}
template <class... Results>
void put(StableIValue* stack, const std::tuple<Results...>& results) {
  std::apply([&stack](const Results&... each) { (put(stack++, each), ...); }, results);
}

template <class Result, class... Parameters>
void run_boxed(Result (*kernel)(Parameters...), StableIValue* stack, uint64_t inputs) {
  const uint64_t expected = (stack_size<std::remove_cvref_t<Parameters>>() + ...);
  if (inputs != expected) throw std::runtime_error("pykernels: a kernel has other parameters than its schema");
  StableIValue* at = stack;
  std::tuple<std::remove_cvref_t<Parameters>...> arguments{taken<std::remove_cvref_t<Parameters>>(at)...};  // in order
  put(stack, std::apply(kernel, std::move(arguments)));
}

template <auto kernel>
void boxed(StableIValue* stack, uint64_t inputs, uint64_t /*outputs: the schema's*/) {
  run_boxed(kernel, stack, inputs);
}

}  // namespace pk::binding
