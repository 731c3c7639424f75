// Where things lie: the packed block, workspaces, the rows of a sequence. Plain arithmetic, shared by all ISAs.
#pragma once

#include <cstdint>
#include <cstring>

#include "pykernels/lstm.h"

namespace pk {
namespace {

constexpr int64_t round_up(int64_t x, int64_t to) { return (x + to - 1) / to * to; }

struct LstmHeader {
  char magic[8];
  int32_t version, lanes, dtype, layers, directions, bias;
  int64_t input, hidden, bytes;
};
inline constexpr char kLstmMagic[8] = {'p', 'k', '.', 'l', 's', 't', 'm', 0};
inline constexpr int64_t kHeaderBytes = 128;
static_assert(sizeof(LstmHeader) <= kHeaderBytes);

// Byte offsets of one layer and direction within the packed block.
struct PackedOffsets {
  int64_t w_ih, w_hh, bias, end;
};

inline PackedOffsets packed_offsets(const LstmShape& s, int lanes, int layer, int direction) {
  const int64_t padded = round_up(s.hidden, lanes), element = static_cast<int64_t>(size_of(s.dtype));
  const auto bytes = [&](int l) {
    return round_up(4 * padded * lstm_input(s, l) * element, 64) + round_up(4 * padded * s.hidden * element, 64) +
           round_up(4 * padded * 4, 64);
  };
  int64_t begin = kHeaderBytes;
  if (layer) begin += s.directions * (bytes(0) + (layer - 1) * bytes(1));
  begin += direction * bytes(layer);
  PackedOffsets o;
  o.w_ih = begin;
  o.w_hh = o.w_ih + round_up(4 * padded * lstm_input(s, layer) * element, 64);
  o.bias = o.w_hh + round_up(4 * padded * s.hidden * element, 64);
  o.end = begin + bytes(layer);
  return o;
}

inline int64_t packed_bytes_of(const LstmShape& s, int lanes) {
  return packed_offsets(s, lanes, s.layers - 1, s.directions - 1).end;
}

// Hands out 64-byte aligned pieces of a workspace; with a null base it only counts.
struct Arena {
  char* base = nullptr;
  int64_t used = 0;

  template <class T>
  T* take(int64_t count) {
    char* const p = base + used;
    used += round_up(count * static_cast<int64_t>(sizeof(T)), 64);
    return base ? reinterpret_cast<T*>(p) : nullptr;
  }
};

// Time step t's sequences are rows first(t) .. first(t) + active(t) of everything that is stored densely.
struct Rows {
  int64_t steps, batch;
  const int64_t* sizes;   // or nullptr
  const int64_t* starts;  // (steps + 1), only where sizes is set

  int64_t active(int64_t t) const { return sizes ? sizes[t] : batch; }
  int64_t first(int64_t t) const { return sizes ? starts[t] : t * batch; }
};

inline Rows make_rows(const LstmShape& s, Arena& arena) {
  int64_t* starts = s.batch_sizes ? arena.take<int64_t>(s.steps + 1) : nullptr;
  if (starts) {
    starts[0] = 0;
    for (int64_t t = 0; t < s.steps; ++t) starts[t + 1] = starts[t] + s.batch_sizes[t];
  }
  return {s.steps, s.batch, s.batch_sizes, starts};
}

// Element offset of (t, b, 0) in a sequence tensor.
inline int64_t offset_of(const LstmSequence& q, const Rows& rows, int64_t t, int64_t b) {
  return rows.sizes ? (rows.first(t) + b) * q.row : t * q.step + b * q.row;
}

// Are its rows one after the other, `features` apart?
inline bool is_dense(const LstmSequence& q, const LstmShape& s, int64_t features) {
  const bool row = q.row == features || (s.batch == 1 && !s.batch_sizes);
  const bool step = s.batch_sizes || s.steps == 1 || q.step == s.batch * features;
  return row && step;
}

// The flat index of a layer and direction.
inline int cell_of(const LstmShape& s, int layer, int direction) { return layer * s.directions + direction; }

// Floats of a reserve row: gates i, f, g, o and c, (5, h).
inline int64_t reserve_row(const LstmShape& s) { return 5 * s.hidden; }

}  // namespace
}  // namespace pk
