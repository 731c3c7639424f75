// What every kernel entry returns. Kernels never throw: the binding turns a failed status into an exception. The text
// is static, except force_isa's, which is valid until the thread's next call of it.
#pragma once

namespace pk {

struct [[nodiscard]] Status {
  const char* error = nullptr;  // nullptr: success. Otherwise: argument, what was expected.

  explicit operator bool() const { return error == nullptr; }
};

inline constexpr Status kOk{};

// Runs what gives a Status, and returns that where it has failed.
#define PK_TRY(...)                                                                 \
  do {                                                                              \
    if (const ::pk::Status pk_status = (__VA_ARGS__); !pk_status) return pk_status; \
  } while (false)

}  // namespace pk
