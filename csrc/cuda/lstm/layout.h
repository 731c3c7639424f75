// Where things lie: the packed block and workspaces. Plain arithmetic.
#pragma once

#include <cstdint>

#include "common/rounding.h"
#include "pykernels/cuda/lstm.h"

namespace pk::cuda::lstm {

// One layer and direction within the packed block: byte offsets, and the pitches of weight rows in elements.
struct PackedParts {
  int64_t w_ih, w_hh, bias, end, input_pitch, hidden_pitch;
};

inline PackedParts packed_parts(const LstmShape& s, int layer, int direction) {
  const int64_t element = static_cast<int64_t>(size_of(s.dtype));
  const auto pitch = [&](int64_t k) { return round_up(k, 16 / element); };
  const auto bytes = [&](int64_t l) {
    return 4 * s.hidden * (pitch(lstm_input(s, static_cast<int>(l))) + pitch(s.hidden)) * element + 16 * s.hidden;
  };
  PackedParts p;
  p.input_pitch = pitch(lstm_input(s, layer)), p.hidden_pitch = pitch(s.hidden);
  p.w_ih = layer ? s.directions * (bytes(0) + (layer - 1) * bytes(1)) : 0;
  p.w_ih += direction * bytes(layer);
  p.w_hh = p.w_ih + 4 * s.hidden * p.input_pitch * element;
  p.bias = p.w_hh + 4 * s.hidden * p.hidden_pitch * element;
  p.end = p.bias + 16 * s.hidden;
  return p;
}

// Hands out 256-byte aligned pieces of a workspace; with a null base it only counts.
struct Arena {
  char* base = nullptr;
  int64_t used = 0;

  template <class T>
  T* take(int64_t count) {
    char* const p = base + used;
    used += round_up(count * static_cast<int64_t>(sizeof(T)), 256);
    return base ? reinterpret_cast<T*>(p) : nullptr;
  }
};

}  // namespace pk::cuda::lstm
