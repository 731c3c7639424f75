// The packed block of the int8 LSTM. Plain arithmetic, shared by all ISAs.
//
// A header; then for each layer and direction W_ih, W_hh, and a table of floats for each block of v units, v being the
// lanes of the ISA. A weight matrix (4h, k) is cut into panels of two gates of v units: panel 2u holds i and f of unit
// block u, panel 2u + 1 holds g and o. A panel is [k / group][2][v][group], with zeros beyond h and k, which is rounded
// up to kPackedRows: the bytes that one dot-product instruction sums lie together, and a panel is one stream.
#pragma once

#include "cpu/int8_matmul/kernels.h"
#include "cpu/lstm/layout.h"
#include "pykernels/int8_lstm.h"

namespace pk {
namespace {

struct Int8LstmHeader {
  char magic[8];
  int32_t version, lanes, group, layers, directions, bias;
  int64_t input, hidden, bytes;
};
inline constexpr char kInt8LstmMagic[8] = {'p', 'k', '.', 'l', 's', 't', 'm', '8'};
inline constexpr int32_t kInt8LstmVersion = 1;
static_assert(sizeof(Int8LstmHeader) <= kHeaderBytes);

// Of the table: scales of W_ih and of W_hh, what to subtract from their sums (int32), biases; each (4, v) a unit block.
inline constexpr int64_t kTableRows = 5;

// Byte offsets of one layer and direction within the packed block.
struct Int8LstmOffsets {
  int64_t w_ih, w_hh, table, end;
};

inline Int8LstmOffsets int8_packed_offsets(const LstmShape& s, int lanes, int layer, int direction) {
  const int64_t gates = 4 * round_up(s.hidden, lanes);
  const auto matrix = [&](int64_t k) { return round_up(gates * round_up(k, kPackedRows), 64); };
  const int64_t rest = matrix(s.hidden) + round_up(gates * kTableRows * 4, 64);
  const auto bytes = [&](int l) { return matrix(lstm_input(s, l)) + rest; };
  int64_t begin = kHeaderBytes;
  if (layer) begin += s.directions * (bytes(0) + (layer - 1) * bytes(1));
  begin += direction * bytes(layer);
  Int8LstmOffsets o;
  o.w_ih = begin;
  o.w_hh = o.w_ih + matrix(lstm_input(s, layer));
  o.table = o.w_hh + matrix(s.hidden);
  o.end = begin + bytes(layer);
  return o;
}

inline int64_t int8_packed_bytes_of(const LstmShape& s, int lanes) {
  return int8_packed_offsets(s, lanes, s.layers - 1, s.directions - 1).end;
}

}  // namespace
}  // namespace pk
