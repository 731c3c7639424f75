// What float and int8 maps have in common: the small products, and how the maps lie. Internal linkage: ISA sources
// include it.
#pragma once

#include "cpu/activate.h"
#include "cpu/parallel_for.h"
#include "cpu/squeeze_excite/kernels.h"
#include "cpu/squeeze_excite/rows.h"

namespace pk {
namespace PK_ISA {
namespace {

constexpr int64_t kGrain = 65536;  // elements that are worth waking a thread for
constexpr int64_t kAhead = 2048;   // elements of a weight between what is read and what is fetched, at least

// Where the channels, or else the columns, of x and y are not adjacent, it goes element by element.
enum class Way { channels, planes, apart };

Way way_of(const SqueezeExciteArgs& a) {
  const int64_t *x = a.x_stride, *y = a.y_stride;
  const bool planes = (a.w == 1 || (x[3] == 1 && y[3] == 1));
  if (a.c > 1 && x[1] == 1 && y[1] == 1) return Way::channels;
  return planes ? Way::planes : Way::apart;
}

// to[i, row] = activation(weight[row] . from[i] + bias[row]), i < n.
template <class T>
void product(int64_t n, int64_t rows, int64_t columns, const void* weight, const void* bias, Activation activation,
             const float* from, float* to, const Executor& executor) {
  const auto* matrix = static_cast<const T*>(weight);
  const auto* shift = static_cast<const T*>(bias);
  const int64_t groups = (rows + kLanes - 1) / kLanes;
  const int64_t grain = max(1, kGrain / max(1, n * columns * kLanes));
  const int64_t ahead = (kAhead / max(1, columns * kLanes) + 1) * columns * kLanes;
  parallel_for(executor, 0, groups, grain, [&](int64_t begin, int64_t end) {
    for (int64_t group = begin; group < end; ++group) {
      const int64_t row = group * kLanes, count = min(kLanes, rows - row);
      const T* some[kLanes];
      for (int64_t i = 0; i < kLanes; ++i) some[i] = matrix + min(row + i, rows - 1) * columns;
      const F32 added = shift ? load_widened(shift + row, count) : F32{};
      for (int64_t i = 0; i < n; ++i) {
        const F32 sum = times_rows(some, from + i * columns, columns, ahead) + added;
        store_partial(to + i * rows + row, activate(sum, activation, 0.01f), count);
      }
    }
  });
}

}  // namespace
}  // namespace PK_ISA
}  // namespace pk
