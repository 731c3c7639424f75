// A lambda on an Executor. Internal linkage, as everything that ISA sources include.
#pragma once

#include "pykernels/parallel.h"

namespace pk {
namespace {

// body(begin, end); see Executor::run.
template <class Body>
void parallel_for(const Executor& executor, int64_t begin, int64_t end, int64_t grain, const Body& body) {
  executor.run(
      begin, end, grain, [](int64_t b, int64_t e, void* context) { (*static_cast<const Body*>(context))(b, e); },
      const_cast<void*>(static_cast<const void*>(&body)));
}

}  // namespace
}  // namespace pk
