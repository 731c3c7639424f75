// The native tests' few tools: EXPECT, a seeded generator, the ISAs to run, a pool of std::threads.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <random>
#include <string>
#include <thread>
#include <tuple>
#include <vector>

#include "pykernels/isa.h"
#include "pykernels/parallel.h"

namespace pk::test {

inline int failures = 0;
inline int checks = 0;

#define EXPECT(condition, ...)                                   \
  do {                                                           \
    ++pk::test::checks;                                          \
    if (!(condition)) {                                          \
      ++pk::test::failures;                                      \
      std::printf("%s:%d: %s:", __FILE__, __LINE__, #condition); \
      std::printf(" " __VA_ARGS__);                              \
      std::printf("\n");                                         \
    }                                                            \
  } while (false)

// Last line of main: prints the closing line and gives the exit status; no checks at all is a failure.
inline int finish() {
  std::printf("%d passed, %d failed\n", checks - failures, failures);
  return failures == 0 && checks > 0 ? 0 : 1;
}

// What `normal` gave, and how many numbers that are. A pointer: the watched builds have no atomic guards of statics.
inline std::map<std::tuple<size_t, unsigned, float>, std::vector<float>>* kept_numbers = nullptr;
inline size_t kept_count = 0;

// Of this deviation. Kept for the next to ask the same, as tests do that try every layout, thread count and ISA.
inline std::vector<float> normal(size_t n, unsigned seed, float scale = 1.0f) {
  if (kept_numbers == nullptr) kept_numbers = new std::map<std::tuple<size_t, unsigned, float>, std::vector<float>>;
  auto& kept = *kept_numbers;
  if (const auto found = kept.find({n, seed, scale}); found != kept.end()) return found->second;
  if (kept_count > 1 << 23) kept.clear(), kept_count = 0;
  std::mt19937 generator(seed);
  std::normal_distribution<float> distribution(0.0f, scale);
  std::vector<float> v(n);
  for (float& x : v) x = distribution(generator);
  kept_count += n;
  return kept[{n, seed, scale}] = v;
}

// |a - b| / |b| over the whole of two arrays, in double.
template <class A, class B>
double relative_l2(const std::vector<A>& a, const std::vector<B>& b) {
  double difference = 0, norm = 0;
  for (size_t i = 0; i < b.size(); ++i) {
    const double d = static_cast<double>(a[i]) - static_cast<double>(b[i]);
    difference += d * d;
    norm += static_cast<double>(b[i]) * static_cast<double>(b[i]);
  }
  return norm > 0 ? std::sqrt(difference / norm) : std::sqrt(difference);
}

// PK_NATIVE_TESTS=quick, for emulators: without wide512, with fewer random calls and combinations.
inline bool is_quick() {
  const char* set = std::getenv("PK_NATIVE_TESTS");
  return set != nullptr && std::string(set) == "quick";
}

// Runs the float kernels of the one before it: tests of no int8 kernels leave it out.
inline bool is_int8_only(Isa isa) { return isa == Isa::avx512_vnni || isa == Isa::neon_dotprod; }

// The ISAs that this build has and this machine runs.
inline std::vector<Isa> host_isas() {
  std::vector<Isa> isas;
  for (int i = 0; i < kIsas; ++i) {
    const auto isa = static_cast<Isa>(i);
    if (isa_compiled(isa) && isa_supported(isa))
      isas.push_back(isa);
    else if (isa_compiled(isa))
      std::printf("not run here: %s (not supported by this CPU)\n", isa_name(isa));
  }
  return isas;
}

// Starts its threads anew at each run: slow, but it has true concurrency and no state. A function pointer carries no
// count, so each count has a function of its own.
template <int threads>
Executor executor_of() {
  return {threads, [](int64_t begin, int64_t end, int64_t grain, RangeBody body, void* context) {
            const int64_t most = (end - begin + grain - 1) / (grain > 0 ? grain : 1);
            const int64_t n = most < threads ? most : threads;
            if (n <= 0) return;
            std::vector<std::thread> pool;
            const int64_t chunk = (end - begin + n - 1) / n;
            for (int64_t b = begin; b < end; b += chunk) {
              pool.emplace_back(body, b, b + chunk < end ? b + chunk : end, context);
            }
            for (auto& t : pool) t.join();
          }};
}
inline Executor thread_executor(int threads) {
  static const Executor executors[] = {executor_of<1>(), executor_of<2>(), executor_of<3>(), executor_of<4>(),
                                       executor_of<5>(), executor_of<6>(), executor_of<7>(), executor_of<8>()};
  if (threads < 1 || threads > 8) std::abort();
  return executors[threads - 1];
}

}  // namespace pk::test
