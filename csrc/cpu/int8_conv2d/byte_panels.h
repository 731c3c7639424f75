// Panels for byte_pairs.h: vpmaddubsw sums two products of bytes to a word, and two such words are chained, added as
// words, where nothing can leave them.
//
// With x's values at most 127 a word holds the sum of four products whose weights' absolute values add up to 258. So
// packing looks at the quads of a panel's depth, 16 columns x 4 bytes each, and pairs those that may be chained; most
// find a partner. The others are summed to 32 bits by themselves, where two products always fit. The order is part of
// the blob, and so is the place of each quad.
#pragma once

#include "cpu/int8_conv2d/kernels.h"
#include "cpu/int8_matmul/tiling.h"
#include "cpu/parallel_for.h"

namespace pk {
namespace PK_ISA {
namespace {

// What is added to x before its lowest 7 bits are taken: x_zero_point becomes 0 if it is the least value (ReLU), else
// it comes to the middle or as near as x stays within a byte.
constexpr int32_t byte_offset(int32_t x_zero_point) {
  return x_zero_point > 64 ? 0 : x_zero_point < -64 ? 128 : 64 - x_zero_point;
}

// How the quads of a panel lie: piece by piece first the chained ones, two by two, then the others.
template <class Count, class Index>
struct ByteOrder {
  Count* chained;   // (pieces) pairs
  Index* order;     // (pieces, quads) which quad of its piece lies there
  Index* position;  // (pieces, quads) where it lies, in quads from the panel's start

  // `bytes`: of a group's body.
  template <class Byte>
  ByteOrder(const Int8ConvLayout& l, Byte* bytes, int64_t panel) {
    bytes += l.orders_at() + panel * l.order_bytes();
    chained = reinterpret_cast<Count*>(bytes);
    order = reinterpret_cast<Index*>(bytes + 4 * l.lines * l.pieces);
    position = order + l.depth() / 4;
  }
};
using ReadByteOrder = ByteOrder<const int32_t, const uint16_t>;
using WriteByteOrder = ByteOrder<int32_t, uint16_t>;

// Four bytes of each of up to 16 columns, `stride` bytes apart, and zeros.
struct Quad {
  int8_t bytes[4 * kNr] = {};

  Quad(const int8_t* from, int64_t stride, int64_t columns) {
    for (int64_t v = 0; v < columns; ++v) std::memcpy(bytes + 4 * v, from + v * stride, 4);
  }
  I16 absolutes(int v) const {
    const auto v8 = load<I8>(bytes + v * kVecBytes);
    return multiply_pairs(v8 < 0 ? -v8 : v8, I8{} + 1);
  }
};

inline bool may_chain(const Quad& a, const Quad& b) {
  const I16 beyond = (a.absolutes(0) + b.absolutes(0) > 258) | (a.absolutes(1) + b.absolutes(1) > 258);
  return lanes_set(bit_cast<I32>(beyond)) == 0;
}

// source(quad of the piece) is a Quad; `first` the piece's first quad in the panel.
template <class Source>
inline int32_t order_quads(const Source& source, int64_t quads, int64_t first, uint16_t* order, uint16_t* position) {
  constexpr uint16_t kNone = 0xffff;
  constexpr int kTries = 16;
  for (int64_t q = 0; q < quads; ++q) position[q] = kNone;
  int64_t filled = 0;
  const auto put = [&](int64_t q) {
    order[filled] = static_cast<uint16_t>(q);
    position[q] = static_cast<uint16_t>(first + filled++);
  };
  for (int64_t q = 0; q < quads; ++q) {
    if (position[q] != kNone) continue;
    const Quad quad = source(q);
    int tries = 0;
    for (int64_t other = q + 1; other < quads && tries < kTries; ++other) {
      if (position[other] != kNone) continue;
      ++tries;
      if (!may_chain(quad, source(other))) continue;
      put(q), put(other);
      break;
    }
  }
  const auto chained = static_cast<int32_t>(filled / 2);
  for (int64_t q = 0; q < quads; ++q) {
    if (position[q] == kNone) put(q);
  }
  return chained;
}

// weight: (groups, columns, r, s, channels).
inline void pack_bytes(const ConvShape& s, int32_t x_zero_point, const int8_t* weight, char* body,
                       const Executor& executor) {
  const Int8ConvLayout l(s);
  const int64_t columns = s.k / s.groups, panels = l.columns / kNr, pieces = l.lines * l.pieces, quads = l.piece / 4;
  const auto offset = static_cast<uint32_t>(byte_offset(x_zero_point) + x_zero_point);
  for (int64_t group = 0; group < s.groups; ++group) {  // what fills the orders up to a cache line
    std::memset(body + (group + 1) * l.group_bytes() - 64, 0, 64);
  }
  parallel_for(executor, 0, s.groups * panels, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t group = i / panels, panel = i % panels, valid = max(0, min(kNr, columns - panel * kNr));
      char* const to = body + group * l.group_bytes();
      auto* const starts = reinterpret_cast<int32_t*>(to) + panel * kNr;
      auto* quad_bytes = reinterpret_cast<int8_t*>(to + l.starts_bytes()) + panel * kNr * l.depth();
      const WriteByteOrder order(l, to, panel);
      const int8_t* const from = weight + (group * columns + panel * kNr) * l.depth();
      uint32_t sums[kNr] = {};
      std::memset(starts, 0, sizeof sums);
      for (int64_t piece = 0; piece < pieces; ++piece) {
        const int64_t first = piece * quads;
        const auto source = [&](int64_t q) { return Quad(from + piece * l.piece + 4 * q, l.depth(), valid); };
        order.chained[piece] = order_quads(source, quads, first, order.order + first, order.position + first);
        for (int64_t q = 0; q < quads; ++q, quad_bytes += 4 * kNr) {
          const Quad quad = source(order.order[first + q]);
          std::memcpy(quad_bytes, quad.bytes, sizeof quad.bytes);
          for (int v = 0; v < 4 * kNr; ++v) sums[v / 4] += static_cast<uint32_t>(quad.bytes[v]);
        }
        int32_t* const next = starts + (piece + 1) * l.columns;
        for (int v = 0; v < kNr; ++v) next[v] = static_cast<int32_t>(0u - offset * sums[v]);
      }
    }
  });
}

// A panel as words in pairs, as Direct reads it.
inline void words_of_quads(const Int8ConvLayout& l, const ReadByteOrder& order, const int8_t* panel, int16_t* to) {
  const int64_t quads = l.piece / 4;
  for (int64_t i = 0; i < l.depth() / 4; ++i) {
    int16_t* const pairs = to + (i / quads * quads + order.order[i]) * 4 * kNr;
    for (int v = 0; v < kNrVectors; ++v, panel += kVecBytes) {
      const auto v4 = load<I32>(panel);
      store(pairs + v * 2 * kLanes, ((v4 << 24) >> 24 & 0xffff) | (v4 << 16 >> 24 << 16));
      store(pairs + 2 * kNr + v * 2 * kLanes, ((v4 << 8) >> 24 & 0xffff) | (v4 >> 24 << 16));
    }
  }
}

}  // namespace
}  // namespace PK_ISA
}  // namespace pk
