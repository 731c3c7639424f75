// What the tests of CUDA kernels share: memory, devices, and calls that have to succeed.
#pragma once

#include <string>

#include "common/rounding.h"
#include "elements.h"
#include "pykernels/status.h"
#include "simt/simt.h"
#include "test.h"

namespace pk::test {

// Watched for races everything takes ten times as long, and a race needs no large shape.
#ifdef PK_SIMT_RACE
constexpr bool kThorough = false;
#else
constexpr bool kThorough = true;
#endif

using Bytes = simt::Guarded<char>;
using OnDevice = Elements<Bytes>;

inline const cuda::Device kH100 = {90, 132, 232448, 65536, 50ll << 20};

// The device for a block of tests.
struct On {
  explicit On(const cuda::Device& device) : before(simt::device()) { simt::device() = device; }
  ~On() { simt::device() = before; }
  cuda::Device before;
};

// Of a call's status and of the kernels' own errors.
inline void succeeded(const Status& s, const char* what) {
  const std::string error = simt::take_error();
  EXPECT(s && error.empty(), "%s: %s %s", what, s ? "" : s.error, error.c_str());
}

// Runs a plan, in a workspace of NaN that begins at a multiple of `alignment` bytes.
template <class Plan>
void run_planned(const Plan& plan, int64_t alignment = 16) {
  Bytes workspace(static_cast<size_t>(round_up(plan.workspace_bytes, alignment)));
  succeeded(run(plan, workspace.data(), nullptr), "run");
}
template <class Plan, class Args>
void plan_and_run(const Args& args) {
  Plan plan;
  succeeded(make_plan(args, &plan), "make_plan");
  run_planned(plan);
}

}  // namespace pk::test
