// What `note_tensors` returned, for callers that go around torch's dispatcher.
#pragma once

#include <cstdint>

#include "pykernels/isa.h"

namespace pk::binding {

// Are the tensors where and as they were? Throws std::runtime_error for a number that was not given, or was forgotten.
PK_API bool are_as_noted(int64_t note);

// Lets go of them; does nothing for such a number. No op: Python's garbage collector calls it whenever it comes, also
// while a model is traced, whose graph an op would end up in.
PK_API void forget_note(int64_t note);

}  // namespace pk::binding
