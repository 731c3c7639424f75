// 3x3 filters at stride 1 as Winograd's F(4x4, 3x3) in integers, exact: 36 products of 16-bit words where the direct
// sums take 144 of bytes.
//
//   Y = A^T [ sum over c of (G w G^T) * (B^T x B) ] A        elementwise product; x: 6x6, w: 3x3, Y: 4x4
//
// With the points 0, +-1, +-2 and infinity B^T is integral, and so is G once its rows are multiplied by 24, -6, -6, 24,
// 24 and 6, for which A^T makes up: (24, 12, 6, 6) times the four outputs, in each direction. Of x in [-128, 127] |B^T
// x B| is at most 12800, and |G w G^T| at most 6272: both are 16-bit words, and no pair of products leaves int32. All
// else is modulo 2^32: a sum has a factor of 9, which the inverse of 9 takes off, and of up to 64, which a shift does.
// That leaves 26 bits: hence winograd_fits. x_zero_point comes last, as it multiplies the filter's sum alone.
//
//   a block is some tiles of the output; a task is one block x some panels of channels. A block's tiles are transformed
//   once: v (36, tiles, c). Then for each panel, for each of the 36: tiles x channels of m stay in registers over all
//   c; and m (36, tiles, kNr) is transformed back, in L2, straight into the epilogue.
#pragma once

#include "cpu/int8_conv2d/direct.h"

namespace pk {
namespace PK_ISA {
namespace {

// B^T d.
inline void to_winograd(const I16 (&d)[6], I16 (&t)[6]) {
  const I16 c = d[4] - d[2], f = d[3] - d[1], a = d[4] - (d[2] << 2), b = d[3] - (d[1] << 2), e = f + f;
  t[0] = ((d[0] - d[2]) << 2) + c;
  t[1] = a + b;
  t[2] = a - b;
  t[3] = c + e;
  t[4] = c - e;
  t[5] = d[5] - d[3] - (f << 2);
}

// A^T m, times (24, 12, 6, 6).
inline void from_winograd(const U32 (&m)[6], U32 (&y)[4]) {
  const U32 s = m[1] + m[2], d = m[1] - m[2], p = m[3] + m[4], q = m[3] - m[4];
  y[0] = m[0] + p - (s << 2);
  y[1] = q - (d + d);
  y[2] = p - s;
  y[3] = m[5] + (q + q) - d;
}

// m of kRows tiles, kNr channels each: over c channels of v's rows and u. Meanwhile brings what follows u into L2.
template <int kRows>
inline void winograd_tile(const int16_t* v, int64_t c, const int16_t* u, int32_t* m) {
  I32 sum[kRows][kNrVectors] = {};
  for (int64_t i = 0; i < c; i += 2, u += 2 * kNr) {
    fetch_ahead(u + c * kNr, 2 * kNr);
    const auto b0 = load<I16>(u), b1 = load<I16>(u + 2 * kLanes);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      int32_t pair;
      std::memcpy(&pair, v + r * c + i, sizeof pair);
      const I32 a = broadcast(pair);
      sum[r][0] = dot(sum[r][0], a, b0);
      sum[r][1] = dot(sum[r][1], a, b1);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
    store(m + r * kNr, sum[r][0]);
    store(m + r * kNr + kLanes, sum[r][1]);
  }
}

template <int kRows>
inline void run_winograd_tile(int64_t rows, const int16_t* v, int64_t c, const int16_t* u, int32_t* m) {
  if (rows == kRows) {
    winograd_tile<kRows>(v, c, u, m);
  } else if constexpr (kRows > 1) {
    run_winograd_tile<kRows - 1>(rows, v, c, u, m);
  }
}

// v and m of a block, and a pixel of padding.
struct WinogradSlot {
  int16_t* v;
  int32_t* m;
  int8_t* blank;
};

struct Winograd : Int8Conv {
  const char* packed;  // starts and u

  template <Kind kind>
  void run_slot(int64_t i, char* memory) const {
    const WinogradSlot slot{reinterpret_cast<int16_t*>(memory), reinterpret_cast<int32_t*>(memory + cut.x_bytes),
                            reinterpret_cast<int8_t*>(memory + cut.x_bytes + cut.sums_bytes)};
    std::memset(slot.blank, plan.options.x_zero_point, static_cast<size_t>(shape.c));
    const WinogradTiles tiles(shape);
    const int64_t tasks = cut.row_blocks * cut.chunks;
    int64_t transformed = -1;
    for (int64_t t = share(tasks, i, cut.slots); t < share(tasks, i + 1, cut.slots); ++t) {
      const int64_t block = t / cut.chunks, chunk = t % cut.chunks;
      const int64_t begin = share(tiles.count(), block, cut.row_blocks);
      const int64_t count = share(tiles.count(), block + 1, cut.row_blocks) - begin;
      if (block != transformed) {
        for (int64_t j = 0; j < count; ++j) transform(tiles, begin + j, slot.v + j * shape.c, slot.blank);
        transformed = block;
      }
      const int64_t end = share(cut.panels, chunk + 1, cut.chunks);
      for (int64_t panel = share(cut.panels, chunk, cut.chunks); panel < end; ++panel) {
        multiply(panel, count, slot);
        put_panel<kind>(panel, tiles, begin, count, slot.m);
      }
    }
  }

 private:
  // Values of v and of m between one of the 36 and the next.
  int64_t v_step() const { return cut.line; }
  int64_t m_step() const { return cut.pixel; }

  // The 36 of one tile of x, with all channels.
  void transform(const WinogradTiles& tiles, int64_t tile, int16_t* to, const int8_t* blank) const {
    const int8_t* from[6][6];
    const int64_t y = tiles.row(tile) - shape.pad_top, z = tiles.column(tile) - shape.pad_left;
    const int8_t* const image = x + tiles.image(tile) * stride[0];
    for (int64_t i = 0; i < 6; ++i) {
      const bool within = y + i >= 0 && y + i < shape.h;
      const int8_t* const line = image + (y + i) * stride[2];
      for (int64_t j = 0; j < 6; ++j) {
        from[i][j] = within && z + j >= 0 && z + j < shape.w ? line + (z + j) * stride[3] : blank;
      }
    }
    for (int64_t c = 0; c < shape.c; c += 2 * kLanes) {
      I16 half[6][6];
#pragma GCC unroll 6
      for (int j = 0; j < 6; ++j) {
        I16 d[6], t[6];
#pragma GCC unroll 6
        for (int i = 0; i < 6; ++i) d[i] = widen(load<I8Half>(from[i][j] + c));
        to_winograd(d, t);
#pragma GCC unroll 6
        for (int i = 0; i < 6; ++i) half[i][j] = t[i];
      }
#pragma GCC unroll 6
      for (int i = 0; i < 6; ++i) {
        I16 t[6];
        to_winograd(half[i], t);
#pragma GCC unroll 6
        for (int j = 0; j < 6; ++j) store(to + (i * 6 + j) * v_step() + c, t[j]);
      }
    }
  }

  void multiply(int64_t panel, int64_t count, const WinogradSlot& slot) const {
    const auto* u = reinterpret_cast<const int16_t*>(packed + winograd_starts_bytes(shape));
    u += panel * 36 * shape.c * kNr;
    const int64_t n = ceil_div(count, kConvMr);
    for (int64_t f = 0; f < 36; ++f, u += shape.c * kNr) {
      for (int64_t t = 0; t < n; ++t) {
        const int64_t first = share(count, t, n), rows = share(count, t + 1, n) - first;
        run_winograd_tile<kConvMr>(rows, slot.v + f * v_step() + first * shape.c, shape.c, u,
                                   slot.m + f * m_step() + first * kNr);
      }
    }
  }

  template <Kind kind>
  void put_panel(int64_t panel, const WinogradTiles& tiles, int64_t begin, int64_t count, const int32_t* m) const {
    const auto* const starts = reinterpret_cast<const int32_t*>(packed);
    for (int v = 0; v < kNrVectors; ++v) {
      const int64_t channel = panel * kNr + v * kLanes, channels = min(kLanes, shape.k - channel);
      if (channels <= 0) break;
      const Channels<kind> to(epilogue, channel, channel, channels);
      const auto start = load<U32>(starts + channel);
      for (int64_t j = 0; j < count; ++j) {
        put_tile<kind>(to, tiles, begin + j, m + j * kNr + v * kLanes, start, channels == kLanes);
      }
    }
  }

  template <Kind kind>
  void put_tile(const Channels<kind>& to, const WinogradTiles& tiles, int64_t tile, const int32_t* from, U32 start,
                bool whole) const {
    const int64_t row = tiles.row(tile), column = tiles.column(tile);
    const int64_t rows = shape.p() - row, columns = shape.q() - column;
    const Pixel corner = pixel_at(plan, tiles.image(tile), row, column);
    const int64_t *y = plan.args.y_stride, *residual = plan.args.residual.stride;
    U32 half[4][6];
#pragma GCC unroll 6
    for (int j = 0; j < 6; ++j) {
      U32 column_m[6], t[4];
#pragma GCC unroll 6
      for (int i = 0; i < 6; ++i) column_m[i] = load<U32>(from + (i * 6 + j) * m_step());
      from_winograd(column_m, t);
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) half[i][j] = t[i];
    }
    constexpr int kShift[4] = {3, 2, 1, 1};
    constexpr uint32_t kNinth = 0x38e38e39;  // modulo 2^32
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      if (i >= rows) break;
      U32 t[4];
      I32 sum[4];
      from_winograd(half[i], t);
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) {
        const auto product = bit_cast<I32>(t[j] * kNinth) >> (kShift[i] + kShift[j]);
        sum[j] = bit_cast<I32>(bit_cast<U32>(product) + start);
      }
      const auto at = [&](int64_t j) {
        return Pixel{corner.y + i * y[2] + j * y[3], corner.residual + i * residual[2] + j * residual[3]};
      };
      if constexpr (is_short(kind)) {
        if (whole && columns >= 4) {
          to.put_four(sum[0], sum[1], sum[2], sum[3], at);
          continue;
        }
      }
      for (int64_t j = 0; j < min(4, columns); ++j) to.put(sum[j], at(j));
    }
  }
};

// G w of one direction, times (24, -6, -6, 24, 24, 6).
inline void filter_to_winograd(int32_t a, int32_t b, int32_t c, int32_t (&t)[6]) {
  t[0] = 6 * a;
  t[1] = a + b + c;
  t[2] = a - b + c;
  t[3] = a + 2 * b + 4 * c;
  t[4] = a - 2 * b + 4 * c;
  t[5] = 6 * c;
}

// weight: (k, 3, 3, c). `to`: starts, -x_zero_point * the sum of a filter; u: [panel][36][c / 2][kNr][2].
inline void pack_winograd(const ConvShape& s, int32_t x_zero_point, const int8_t* weight, char* to,
                          const Executor& executor) {
  std::memset(to, 0, static_cast<size_t>(winograd_bytes(s)));
  auto* const starts = reinterpret_cast<int32_t*>(to);
  auto* const u = reinterpret_cast<int16_t*>(to + winograd_starts_bytes(s));
  parallel_for(executor, 0, s.k, 4, [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k) {
      const int8_t* const filter = weight + k * 9 * s.c;
      int32_t sum = 0;
      for (int64_t i = 0; i < 9 * s.c; ++i) sum += filter[i];
      starts[k] = -x_zero_point * sum;
      for (int64_t c = 0; c < s.c; ++c) {
        int32_t half[3][6], t[6];
        for (int64_t r = 0; r < 3; ++r) {
          const int8_t* const line = filter + r * 3 * s.c + c;
          filter_to_winograd(line[0], line[s.c], line[2 * s.c], half[r]);
        }
        int16_t* const at = u + (k / kNr * 36 * (s.c / 2) + c / 2) * 2 * kNr + k % kNr * 2 + c % 2;
        for (int64_t j = 0; j < 6; ++j) {
          filter_to_winograd(half[0][j], half[1][j], half[2][j], t);
          for (int64_t i = 0; i < 6; ++i) at[(i * 6 + j) * s.c * kNr] = static_cast<int16_t>(t[i]);
        }
      }
    }
  });
}

}  // namespace
}  // namespace PK_ISA
}  // namespace pk
