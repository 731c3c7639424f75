// What `note_tensors` gave: are the tensors where and as they were? For callers in C++.
#pragma once

#include <cstdint>

#include "pykernels/isa.h"

namespace pk::binding {

// Throws std::runtime_error for a number that was not given, or was forgotten.
PK_API bool are_as_noted(int64_t note);

}  // namespace pk::binding
