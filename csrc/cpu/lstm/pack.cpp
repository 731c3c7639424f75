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

template <class W>
void pack_all(const LstmShape& s, const void* const* weights, char* packed, const Executor& executor) {
  const int64_t blocks = (s.hidden + kLanes - 1) / kLanes;
  const int per_cell = s.bias ? 4 : 2;
  for (int layer = 0; layer < s.layers; ++layer)
    for (int d = 0; d < s.directions; ++d) {
      const PackedOffsets o = packed_offsets(s, kLanes, layer, d);
      const void* const* w = weights + cell_of(s, layer, d) * per_cell;
      const int64_t k = lstm_input(s, layer);
      parallel_for(executor, 0, blocks, 4, [&](int64_t begin, int64_t end) {
        pack_matrix(static_cast<const W*>(w[0]), s.hidden, k, reinterpret_cast<W*>(packed + o.w_ih), begin, end);
        pack_matrix(static_cast<const W*>(w[1]), s.hidden, s.hidden, reinterpret_cast<W*>(packed + o.w_hh), begin, end);
      });
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

}  // namespace PK_ISA
}  // namespace pk
