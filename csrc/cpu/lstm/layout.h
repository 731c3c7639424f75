// Where things lie: the packed block, workspaces, the rows of a sequence. Plain arithmetic, shared by all ISAs.
#pragma once

#include <cstdint>
#include <cstring>

#include "common/rounding.h"
#include "pykernels/lstm.h"

namespace pk {
namespace {

struct LstmHeader {
  char magic[8];
  int32_t version, lanes, dtype, layers, directions, bias;
  int64_t input, hidden, bytes;
};
inline constexpr char kLstmMagic[8] = {'p', 'k', '.', 'l', 's', 't', 'm', 0};
inline constexpr int64_t kHeaderBytes = 128;
static_assert(sizeof(LstmHeader) <= kHeaderBytes);

// Byte offsets of one layer and direction within the packed block, with `weights` of that dtype.
struct PackedOffsets {
  int64_t w_ih, w_hh, bias, s_ih, s_hh, end;  // int8 alone has scales
};

inline PackedOffsets packed_offsets(const LstmShape& s, DType weights, int lanes, int layer, int direction) {
  const int64_t padded = round_up(s.hidden, lanes), element = static_cast<int64_t>(size_of(weights));
  const int64_t table = round_up(4 * padded * 4, 64), tables = weights == DType::i8 ? 3 : 1;
  const auto bytes = [&](int l) {
    return round_up(4 * padded * lstm_input(s, l) * element, 64) + round_up(4 * padded * s.hidden * element, 64) +
           tables * table;
  };
  int64_t begin = kHeaderBytes;
  if (layer) begin += s.directions * (bytes(0) + (layer - 1) * bytes(1));
  begin += direction * bytes(layer);
  PackedOffsets o;
  o.w_ih = begin;
  o.w_hh = o.w_ih + round_up(4 * padded * lstm_input(s, layer) * element, 64);
  o.bias = o.w_hh + round_up(4 * padded * s.hidden * element, 64);
  o.s_ih = o.bias + table;
  o.s_hh = o.s_ih + table;
  o.end = begin + bytes(layer);
  return o;
}

inline int64_t packed_bytes_of(const LstmShape& s, DType weights, int lanes) {
  return packed_offsets(s, weights, lanes, s.layers - 1, s.directions - 1).end;
}

// Lays a workspace out in 64-byte aligned parts.
struct Arena {
  int64_t used = 0;

  // Where the next part of `count` T begins.
  template <class T>
  int64_t take(int64_t count) {
    const int64_t begin = used;
    used += round_up(count * static_cast<int64_t>(sizeof(T)), 64);
    return begin;
  }
  template <class T>
  int64_t take_if(bool needed, int64_t count) {
    return needed ? take<T>(count) : -1;
  }
};
// The part of a workspace that begins at `offset`, or nullptr where that is -1.
template <class T>
T* part(void* workspace, int64_t offset) {
  return offset < 0 ? nullptr : reinterpret_cast<T*>(static_cast<char*>(workspace) + offset);
}

// Time step t's sequences are rows first(t) .. first(t) + active(t) of everything that is stored densely.
struct Rows {
  int64_t batch;
  const int64_t *sizes, *starts;  // or nullptr

  explicit Rows(const LstmShape& s) : batch(s.batch), sizes(s.batch_sizes), starts(s.starts) {}
  int64_t active(int64_t t) const { return sizes ? sizes[t] : batch; }
  int64_t first(int64_t t) const { return sizes ? starts[t] : t * batch; }
};

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
