// The thread pool is the caller's: the binding injects torch's, native tests a serial or a std::thread one.
#pragma once

#include <cstdint>

namespace pk {

using RangeBody = void (*)(int64_t begin, int64_t end, void* context);

struct Executor {
  int threads = 1;  // the most bodies that run at once
  // Calls body on disjoint ranges that cover [begin, end), none but the last shorter than `grain`; returns when all are
  // done. May run any number of ranges on one thread, and all of them on the caller's: bodies never wait for each other
  // unless they know that the other has started.
  void (*run)(int64_t begin, int64_t end, int64_t grain, RangeBody body, void* context) = nullptr;
};

// The executor that runs everything on the calling thread. A named function: nvcc 13.0 garbles a lambda here.
static inline void run_serially(int64_t begin, int64_t end, int64_t, RangeBody body, void* context) {
  if (begin < end) body(begin, end, context);
}
static inline Executor serial_executor() { return {1, run_serially}; }

}  // namespace pk
