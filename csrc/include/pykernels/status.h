// What every kernel entry returns. Kernels never throw: the binding turns a failed status into an exception.
#pragma once

namespace pk {

struct [[nodiscard]] Status {
  const char* error = nullptr;  // nullptr: success. Otherwise a static string: argument, what was expected.

  explicit operator bool() const { return error == nullptr; }
};

inline constexpr Status kOk{};

}  // namespace pk
