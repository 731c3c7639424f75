// y = activation(x (q s)^T + bias), by the tiles of the LSTM's products (csrc/cpu/lstm/tile.h): a row of x times panels
// of 4 vectors of q's rows, k after k, so that what a tile reads of q is one stream.
//
//   few rows   each panel is read once, and one row takes kStreams panels together.
//   many rows  blocks of kBlockRows rows times kBlockPanels panels, a part of k at a time.
//   weights that are not packed are read as they lie by up to kUnpackedRows rows (csrc/cpu/lstm/dot.h), and packed into
//              the workspace for more.
//
// Shares are cut by the sizes alone, so the bits don't depend on the number of threads.
#include "cpu/activate.h"
#include "cpu/lstm/dot.h"
#include "cpu/lstm/sequence.h"
#include "cpu/parallel_for.h"
#include "cpu/weight_only_linear/kernels.h"
#include "cpu/weight_only_linear/layout.h"

namespace pk {
namespace PK_ISA {
namespace {

inline constexpr int64_t kBlockRows = 48, kBlockPanels = 4, kUnpackedRows = 4;
// Multiply-adds that are worth a thread.
inline constexpr int64_t kGrain = 1 << 17;

inline int64_t grain_of(int64_t work) { return 1 + kGrain / (work + 1); }

// The rows of x as float32, and what is done with sums.
struct Product {
  const WeightOnlyLinearArgs& args;
  const float* x;
  int64_t x_row;
  const float *scale, *bias;  // of whole panels
  const int8_t* panels;

  // sums (rows, ...) of the columns [column, column + width), whose rows are c_row apart, to y.
  void finish(int64_t row, int64_t rows, int64_t column, int64_t width, const float* c, int64_t c_row) const {
    if (args.dtype == DType::f32) return put(static_cast<float*>(args.y), row, rows, column, width, c, c_row);
    put(static_cast<bf16_t*>(args.y), row, rows, column, width, c, c_row);
  }

 private:
  template <class T>
  void put(T* y, int64_t row, int64_t rows, int64_t column, int64_t width, const float* c, int64_t c_row) const {
    const int64_t count = min(width, args.n - column);
    for (int64_t r = 0; r < rows; ++r) {
      T* const to = y + (row + r) * args.n + column;
      const float* const from = c + r * c_row;
      for (int64_t j = 0; j < count; j += kLanes) {
        const F32 v = activate(load<F32>(from + j), args.activation, args.negative_slope);
        if (count - j >= kLanes) {
          store_narrowed(to + j, v);
        } else {
          store_narrowed(to + j, v, count - j);
        }
      }
    }
  }
};

void few_rows(const Product& p, int64_t begin, int64_t end) {
  const WeightOnlyLinearArgs& a = p.args;
  float c[kRowsToWiden * kPanel];
  static_assert(kStreams <= kRowsToWiden);
  const int64_t together = a.m == 1 ? kStreams : 1;
  for (int64_t n = begin; n < end; n += together) {
    const int64_t count = min(together, end - n), column = n * kPanel;
    const int8_t* const w = p.panels + column * a.k;
    if (a.m == 1) {
      row_panels(p.x, w, count, a.k, p.bias + column, kPanel, c, kPanel, p.scale + column);
    } else {
      panel(a.m, p.x, p.x_row, w, a.k, p.bias + column, 0, c, kPanel, p.scale + column);
    }
    p.finish(0, a.m, column, count * kPanel, c, kPanel);
  }
}

// Rows [row, row + rows) and panels [first, last).
void block(const Product& p, int64_t row, int64_t rows, int64_t first, int64_t last) {
  constexpr int64_t kRow = kBlockPanels * kPanel, kDepth = kWidens ? kWidened : kChunk;
  const WeightOnlyLinearArgs& a = p.args;
  float c[kBlockRows * kRow], wide[kWidened * kPanel];
  int64_t j = 0;
  do {
    const int64_t k = min(kDepth, a.k - j);
    const float* const x = p.x + row * p.x_row + j;
    for (int64_t n = first; n < last; ++n) {
      const int8_t* const w = p.panels + (n * a.k + j) * kPanel;
      float* const to = c + (n - first) * kPanel;
      if constexpr (kWidens) {
        widen_panel(w, k, nullptr, wide);
        tiles(rows, x, p.x_row, wide, k, j ? to : nullptr, kRow, to, kRow);
      } else {
        const float* const init = j ? to : p.bias + n * kPanel;
        tiles(rows, x, p.x_row, w, k, init, j ? kRow : 0, to, kRow, p.scale + n * kPanel);
      }
    }
    j += k;
  } while (j < a.k);
  const int64_t column = first * kPanel, width = (last - first) * kPanel;
  if (kWidens) {
    for (int64_t i = 0; i < width; i += kLanes) {
      const F32 scale = load<F32>(p.scale + column + i), bias = load<F32>(p.bias + column + i);
      for (int64_t r = 0; r < rows; ++r) store(c + r * kRow + i, fma(load<F32>(c + r * kRow + i), scale, bias));
    }
  }
  p.finish(row, rows, column, width, c, kRow);
}

// Panel `n` of a weight (n, k).
void pack_panel(const int8_t* weight, int64_t rows, int64_t k, int64_t n, int8_t* to) {
  constexpr int64_t kStrip = 16;
  const int64_t valid = min(kPanel, rows - n * kPanel);
  const int8_t* const from = weight + n * kPanel * k;
  for (int64_t first = 0; first < k; first += kStrip) {
    const int64_t count = min(kStrip, k - first);
    for (int64_t v = 0; v < kPanel; ++v)
      for (int64_t j = 0; j < count; ++j) to[(first + j) * kPanel + v] = v < valid ? from[v * k + first + j] : int8_t{};
  }
}

void pad(const float* from, int64_t n, int64_t padded, float* to) {
  std::memset(to, 0, static_cast<size_t>(padded) * sizeof(float));
  if (from) std::memcpy(to, from, static_cast<size_t>(n) * sizeof(float));
}

void pack_weight(int64_t n, int64_t k, const int8_t* weight, const float* scale, const float* bias, char* block,
                 const Executor& executor) {
  const WeightOnlyLinearOffsets o = weight_only_linear_offsets(n, k, kPanel);
  const int64_t panels = ceil_div(n, int64_t{kPanel});
  pad(scale, n, panels * kPanel, reinterpret_cast<float*>(block + o.scale));
  pad(bias, n, panels * kPanel, reinterpret_cast<float*>(block + o.bias));
  auto* const to = reinterpret_cast<int8_t*>(block + o.panels);
  parallel_for(executor, 0, panels, grain_of(kPanel * k), [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p) pack_panel(weight, n, k, p, to + p * kPanel * k);
  });
}

// Few rows of x times a weight that is not packed; the last rows of it, which fill no panel, are packed into
// `workspace`.
void unpacked(const Product& p, char* workspace, const Executor& executor) {
  const WeightOnlyLinearArgs& a = p.args;
  const int64_t whole = a.n / kPanel, last = whole * kPanel, rest = a.n - last;
  const float none[kPanel] = {};
  const auto start_of = [&](int64_t column) { return a.bias ? a.bias + column : none; };
  if (rest > 0) pack_weight(rest, a.k, a.weight + last * a.k, a.scale + last, start_of(last), workspace, executor);
  parallel_for(executor, 0, whole + (rest > 0), grain_of(kPanel * a.k * a.m), [&](int64_t begin, int64_t end) {
    float c[kUnpackedRows * kPanel];
    for (int64_t n = begin; n < end; ++n) {
      const int64_t column = n * kPanel;
      if (n < whole) {
        dots(a.m, p.x, p.x_row, a.weight + column * a.k, int64_t{kLanes}, 0, a.k, start_of(column), 0, c, kPanel,
             a.scale + column);
      } else {
        const WeightOnlyLinearOffsets o = weight_only_linear_offsets(rest, a.k, kPanel);
        panel(a.m, p.x, p.x_row, reinterpret_cast<const int8_t*>(workspace + o.panels), a.k,
              reinterpret_cast<const float*>(workspace + o.bias), 0, c, kPanel,
              reinterpret_cast<const float*>(workspace + o.scale));
      }
      p.finish(0, a.m, column, kPanel, c, kPanel);
    }
  });
}

void complete(WeightOnlyLinearPlan* plan) {
  const WeightOnlyLinearArgs& a = plan->args;
  Arena arena;
  plan->x_at = arena.take_if<float>(a.dtype != DType::f32, a.m * a.k);
  const int64_t packed = a.m <= kUnpackedRows ? a.n % kPanel : a.n;
  plan->packed_at = arena.take_if<char>(!a.packed, weight_only_linear_offsets(packed, a.k, kPanel).end);
  plan->workspace_bytes = arena.used;
}

void run_product(const WeightOnlyLinearPlan& plan, char* workspace, const Executor& executor) {
  const WeightOnlyLinearArgs& a = plan.args;
  Product p{a, static_cast<const float*>(a.x), a.x_stride, nullptr, nullptr, nullptr};
  if (float* const wide = part<float>(workspace, plan.x_at)) {
    parallel_for(executor, 0, a.m, 1 + 32768 / (a.k + 1), [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) read_row(a.x, a.dtype, r * a.x_stride, a.k, wide + r * a.k);
    });
    p.x = wide, p.x_row = a.k;
  }
  char* const own = part<char>(workspace, plan.packed_at);
  if (own && a.m <= kUnpackedRows) return unpacked(p, own, executor);
  if (own) pack_weight(a.n, a.k, a.weight, a.scale, a.bias, own, executor);
  const char* const packed = own ? own : static_cast<const char*>(a.packed) + kWeightOnlyLinearHeaderBytes;
  const WeightOnlyLinearOffsets o = weight_only_linear_offsets(a.n, a.k, kPanel);
  p.scale = reinterpret_cast<const float*>(packed + o.scale);
  p.bias = reinterpret_cast<const float*>(packed + o.bias);
  p.panels = reinterpret_cast<const int8_t*>(packed + o.panels);
  const int64_t panels = ceil_div(a.n, int64_t{kPanel}), groups = ceil_div(panels, kBlockPanels);
  if (a.m < kRowsToWiden) {
    parallel_for(executor, 0, groups, grain_of(kBlockPanels * kPanel * a.k * a.m), [&](int64_t begin, int64_t end) {
      few_rows(p, begin * kBlockPanels, min(end * kBlockPanels, panels));
    });
    return;
  }
  const int64_t blocks = ceil_div(a.m, kBlockRows);
  parallel_for(executor, 0, blocks * groups, grain_of(kBlockRows * kBlockPanels * kPanel * a.k),
               [&](int64_t begin, int64_t end) {
                 for (int64_t task = begin; task < end; ++task) {
                   const int64_t b = task / groups, first = task % groups * kBlockPanels;
                   const int64_t row = a.m * b / blocks, rows = a.m * (b + 1) / blocks - row;
                   block(p, row, rows, first, min(first + kBlockPanels, panels));
                 }
               });
}

}  // namespace

extern const WeightOnlyLinearKernels weight_only_linear_kernels;
const WeightOnlyLinearKernels weight_only_linear_kernels = {kPanel, pack_weight, complete, run_product};

}  // namespace PK_ISA
}  // namespace pk
