// Packs weights into panels (h/v, k, 4, v): unit block, input, gate, unit. What a tile reads is one stream.
#include "cpu/lstm/isa.h"
#include "cpu/lstm/tile.h"
#include "cpu/parallel_for.h"

namespace pk {
namespace PK_ISA {
namespace {

// w: (4h, k). A panel's rows of w are read kLanes at a time, kStrip k each: whole cache lines on both sides.
template <class W>
void pack_matrix(const W* w, int64_t hidden, int64_t k, W* out, int64_t begin, int64_t end) {
  for (int64_t u = begin; u < end; ++u) {
    W* const panel = out + u * k * kPanel;
    const int64_t valid = hidden - u * kLanes < kLanes ? hidden - u * kLanes : kLanes;
    constexpr int64_t kStrip = 16;
    for (int64_t j0 = 0; j0 < k; j0 += kStrip) {
      const int64_t n = k - j0 < kStrip ? k - j0 : kStrip;
      for (int g = 0; g < 4; ++g) {
        const W* const rows = w + (g * hidden + u * kLanes) * k + j0;
        W* const to = panel + j0 * kPanel + g * kLanes;
        for (int64_t v = 0; v < kLanes; ++v)
          for (int64_t j = 0; j < n; ++j) to[j * kPanel + v] = v < valid ? rows[v * k + j] : W{};
      }
    }
  }
}

// A vector (4h) in panels, as the biases.
void pack_table(const float* from, int64_t hidden, float* out) {
  const float none = 0.0f;
  for (int64_t u = 0; u * kLanes < hidden; ++u)
    for (int64_t g = 0; g < 4; ++g)
      for (int64_t v = 0; v < kLanes; ++v) {
        const int64_t unit = u * kLanes + v;
        out[u * kPanel + g * kLanes + v] = unit < hidden ? from[g * hidden + unit] : none;
      }
}

// The matrices of one layer and direction.
template <class W>
void pack_matrices(const LstmShape& s, int layer, const W* w_ih, const W* w_hh, char* packed, const PackedOffsets& o,
                   const Executor& executor) {
  const int64_t k = lstm_input(s, layer);
  parallel_for(executor, 0, (s.hidden + kLanes - 1) / kLanes, 4, [&](int64_t begin, int64_t end) {
    pack_matrix(w_ih, s.hidden, k, reinterpret_cast<W*>(packed + o.w_ih), begin, end);
    pack_matrix(w_hh, s.hidden, s.hidden, reinterpret_cast<W*>(packed + o.w_hh), begin, end);
  });
}

template <class W>
void pack_all(const LstmShape& s, const void* const* weights, char* packed, const Executor& executor) {
  const int per_cell = s.bias ? 4 : 2;
  for (int layer = 0; layer < s.layers; ++layer)
    for (int d = 0; d < s.directions; ++d) {
      const PackedOffsets o = packed_offsets(s, s.dtype, kLanes, layer, d);
      const void* const* w = weights + cell_of(s, layer, d) * per_cell;
      pack_matrices(s, layer, static_cast<const W*>(w[0]), static_cast<const W*>(w[1]), packed, o, executor);
      pack_bias(static_cast<const W*>(s.bias ? w[2] : nullptr), static_cast<const W*>(s.bias ? w[3] : nullptr),
                s.hidden, reinterpret_cast<float*>(packed + o.bias));
    }
}

}  // namespace

void lstm_pack_weights(const LstmShape& shape, const void* const* weights, void* packed, const Executor& executor) {
  if (shape.dtype == DType::bf16)
    pack_all<bf16_t>(shape, weights, static_cast<char*>(packed), executor);
  else
    pack_all<float>(shape, weights, static_cast<char*>(packed), executor);
}

void lstm_pack_int8(const LstmShape& s, const Int8LstmWeights* weights, void* block, const Executor& executor) {
  char* const packed = static_cast<char*>(block);
  for (int layer = 0; layer < s.layers; ++layer)
    for (int d = 0; d < s.directions; ++d) {
      const PackedOffsets o = packed_offsets(s, DType::i8, kLanes, layer, d);
      const Int8LstmWeights& w = weights[cell_of(s, layer, d)];
      pack_matrices(s, layer, w.w_ih, w.w_hh, packed, o, executor);
      pack_bias(s.bias ? w.b_ih : nullptr, s.bias ? w.b_hh : nullptr, s.hidden,
                reinterpret_cast<float*>(packed + o.bias));
      pack_table(w.s_ih, s.hidden, reinterpret_cast<float*>(packed + o.s_ih));
      pack_table(w.s_hh, s.hidden, reinterpret_cast<float*>(packed + o.s_hh));
    }
}

}  // namespace PK_ISA
}  // namespace pk
