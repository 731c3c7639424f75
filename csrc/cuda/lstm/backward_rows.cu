// The small kernels around the backward recurrence: the cell's derivative for the alternating path, copies of rows, and
// the biases' gradients. All are bound by memory.
#include "cuda/launch.cuh"
#include "cuda/lstm/backward_kernels.h"
#include "cuda/numeric.cuh"

namespace pk::cuda::lstm {
namespace {

constexpr int kThreads = 256;
constexpr int kValues = 896;      // integers that fit into a kernel's parameters with room to spare
constexpr int kSumRows = 256;     // rows of a block of the column sums
constexpr int kMostSlices = 256;  // of them

dim3 blocks_for(int64_t items) {
  const int64_t blocks = ceil_div<int64_t>(items, kThreads);
  return dim3(static_cast<unsigned>(blocks < (1 << 20) ? blocks : 1 << 20));
}
PK_DEVICE int64_t thread_of_grid() {
  return static_cast<int64_t>(blockIdx.x) * kThreads + static_cast<int>(threadIdx.x);
}
PK_DEVICE int64_t threads_of_grid() { return static_cast<int64_t>(gridDim.x) * kThreads; }

template <class T>
__global__ void __launch_bounds__(kThreads)
    cell_step(BackwardLayer l, int d, StepRows rows, const float* dh, float* dc) {
  const BackwardDirection& own = l.direction[d];
  const int64_t items = static_cast<int64_t>(max(rows.active, rows.known)) * l.hidden;
  for (int64_t i = thread_of_grid(); i < items; i += threads_of_grid()) {
    const int b = static_cast<int>(i / l.hidden), u = static_cast<int>(i % l.hidden);
    float v = b < rows.known ? dh[i] : load_state<T>(own.grad_h_n, l.hidden, b, u);
    // Sequences enter the recurrence in their first step only, and leave it with their last.
    float cell = b < rows.known ? dc[i] : load_state<T>(own.grad_c_n, l.hidden, b, u);
    if (b >= rows.active) {
      store_state<T>(own.grad_h0, l.hidden, b, u, v);
      store_state<T>(own.grad_c0, l.hidden, b, u, cell);
      continue;
    }
    float d_cell[4];
    differentiate(load_cell<T>(l, d, rows, b, u), v, cell, d_cell);
    dc[i] = cell;
    T* const to =
        static_cast<T*>(l.d_gates) + (static_cast<int64_t>(rows.first + b) * l.directions + d) * 4 * l.pitch + u;
    PK_UNROLL
    for (int gate = 0; gate < 4; ++gate) to[static_cast<int64_t>(gate) * l.pitch] = from_float<T>(d_cell[gate]);
  }
}

struct Integers {
  int value[kValues];
};
__global__ void __launch_bounds__(kThreads) store_integers(Integers from, int count, int* to) {
  for (int i = static_cast<int>(threadIdx.x); i < count; i += kThreads) to[i] = from.value[i];
}

// Time of a row among the steps' first rows.
PK_DEVICE int time_of(const int* starts, int steps, int row) {
  int low = 0, high = steps;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    if (starts[middle] <= row) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return low;
}

// One block a row, one thread a unit.
template <class T>
__global__ void __launch_bounds__(kThreads)
    gather_previous(BackwardLayer l, int d, int rows, LstmSequence output, const T* h0, T* to) {
  const FirstRow first{l.starts, l.batch};
  for (int row = static_cast<int>(blockIdx.x); row < rows; row += static_cast<int>(gridDim.x)) {
    const int t = l.starts ? time_of(l.starts, l.steps, row) : row / l.batch, b = row - first(t);
    const int before = d ? t + 1 : t - 1;
    const bool begins = before < 0 || before >= l.steps || b >= first(before + 1) - first(before);
    const T* from = begins ? h0 + static_cast<int64_t>(b) * l.hidden
                    : l.starts
                        ? static_cast<const T*>(output.data) + (first(before) + b) * output.row + d * l.hidden
                        : static_cast<const T*>(output.data) + before * output.step + b * output.row + d * l.hidden;
    for (int u = static_cast<int>(threadIdx.x); u < l.hidden; u += kThreads) {
      to[static_cast<int64_t>(row) * l.hidden + u] = from[u];
    }
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    copy_rows(LstmSequence sequence, int steps, int batch, int64_t features, T* rows, bool to_rows) {
  for (int64_t row = blockIdx.x; row < static_cast<int64_t>(steps) * batch; row += gridDim.x) {
    T* const there = static_cast<T*>(sequence.data) + row / batch * sequence.step + row % batch * sequence.row;
    for (int64_t f = static_cast<int>(threadIdx.x); f < features; f += kThreads) {
      if (to_rows) {
        rows[row * features + f] = there[f];
      } else {
        there[f] = rows[row * features + f];
      }
    }
  }
}

int slices_of(int64_t rows) {
  const int64_t slices = ceil_div<int64_t>(rows, kSumRows);
  return static_cast<int>(slices < kMostSlices ? slices : kMostSlices);
}

// partial (slices, 4 * pitch): the sums over a slice of the rows, each thread one column.
template <class T>
__global__ void __launch_bounds__(kThreads)
    sum_slices(const T* d_gates, int64_t stride, int columns, int rows, int slices, float* partial) {
  const int column = static_cast<int>(thread_of_grid()), slice = static_cast<int>(blockIdx.y);
  if (column >= columns) return;
  const int64_t begin = static_cast<int64_t>(rows) * slice / slices,
                end = static_cast<int64_t>(rows) * (slice + 1) / slices;
  float sum = 0.0f;
  for (int64_t row = begin; row < end; ++row) sum += to_float(d_gates[row * stride + column]);
  partial[static_cast<int64_t>(slice) * columns + column] = sum;
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    sum_partials(const float* partial, int slices, int hidden, int pitch, T* b_ih, T* b_hh) {
  const int j = static_cast<int>(thread_of_grid());
  if (j >= 4 * hidden) return;
  const int column = j / hidden * pitch + j % hidden;
  float sum = 0.0f;
  for (int slice = 0; slice < slices; ++slice) sum += partial[static_cast<int64_t>(slice) * 4 * pitch + column];
  b_ih[j] = b_hh[j] = from_float<T>(sum);
}

}  // namespace

Status backward_cell(const BackwardLayer& layer, DType dtype, int d, const StepRows& rows, const float* dh, float* dc,
                     void* stream) {
  const int64_t items = static_cast<int64_t>(rows.active > rows.known ? rows.active : rows.known) * layer.hidden;
  return with_type(dtype, [&](auto t) {
    return launch(cell_step<decltype(t)>, {.grid = blocks_for(items), .block = kThreads}, stream, layer, d, rows, dh,
                  dc);
  });
}

Status write_integers(const int* values, int64_t count, int* to, void* stream) {
  for (int64_t at = 0; at < count; at += kValues) {
    Integers some = {};
    const int n = static_cast<int>(count - at < kValues ? count - at : kValues);
    for (int i = 0; i < n; ++i) some.value[i] = values[at + i];
    PK_TRY(launch(store_integers, {.grid = 1, .block = kThreads}, stream, some, n, to + at));
  }
  return kOk;
}

Status previous_states(const BackwardLayer& layer, DType dtype, int d, int rows, const LstmSequence& output,
                       const void* h0, void* to, void* stream) {
  return with_type(dtype, [&](auto t) {
    using T = decltype(t);
    return launch(gather_previous<T>, {.grid = blocks_for(static_cast<int64_t>(rows) * kThreads), .block = kThreads},
                  stream, layer, d, rows, output, static_cast<const T*>(h0), static_cast<T*>(to));
  });
}

Status copy_sequence(const LstmSequence& sequence, DType dtype, int steps, int batch, int64_t features, void* rows,
                     bool to_rows, void* stream) {
  return with_type(dtype, [&](auto t) {
    using T = decltype(t);
    return launch(copy_rows<T>, {.grid = blocks_for(static_cast<int64_t>(steps) * batch * kThreads), .block = kThreads},
                  stream, sequence, steps, batch, features, static_cast<T*>(rows), to_rows);
  });
}

int64_t column_sums_workspace(const LstmShape& shape, int64_t pitch) {
  return slices_of(lstm_rows(shape)) * 4 * pitch * static_cast<int64_t>(sizeof(float));
}

Status column_sums(const BackwardLayer& layer, DType dtype, int d, int rows, void* b_ih, void* b_hh, void* workspace,
                   void* stream) {
  return with_type(dtype, [&](auto t) {
    using T = decltype(t);
    const int columns = 4 * layer.pitch, slices = slices_of(rows);
    const T* const from = static_cast<const T*>(layer.d_gates) + static_cast<int64_t>(d) * columns;
    float* const partial = static_cast<float*>(workspace);
    const dim3 grid(static_cast<unsigned>(ceil_div(columns, kThreads)), static_cast<unsigned>(slices));
    PK_TRY(launch(sum_slices<T>, {.grid = grid, .block = kThreads}, stream, from,
                  static_cast<int64_t>(layer.directions) * columns, columns, rows, slices, partial));
    return launch(sum_partials<T>, {.grid = blocks_for(4 * layer.hidden), .block = kThreads}, stream, partial, slices,
                  layer.hidden, layer.pitch, static_cast<T*>(b_ih), static_cast<T*>(b_hh));
  });
}

}  // namespace pk::cuda::lstm
