// Depthwise where the ISA multiplies bytes in fours, in vectors of 64 (VNNI): the four bytes of a 32-bit lane are those
// of four lines of x, one below the other, of one channel and column. So a column of a filter of 3 lines is one
// product, and where its stride is 1 the same bytes serve two rows of the output, with the filter one byte further for
// the second.
//
// A task is one or two rows of the output. For 64 channels at a time, or 32 or 16 of two or four pixels side by side:
// the lines are interleaved once, with the padding, then each column of the filter is a product for some pixels and the
// rows. Nothing is ever brought into order: interleaving deals each 16 bytes to four vectors, weights, scales and
// biases are dealt the same way, and packing the results to bytes undoes it.
#pragma once

#include "cpu/int8_conv2d/choose.h"
#include "cpu/int8_conv2d/epilogue.h"

namespace pk {
namespace PK_ISA {
namespace {

// 64 numbers as the four vectors have them; `unit` of them, again and again.
template <class T>
inline void deal(const T* from, int64_t unit, int64_t size, T* to) {
  for (int64_t i = 0; i < 64; i += 4) {
    T* const at = to + (i / 4 % 4 * 16 + i / 16 * 4) * size;
    std::memcpy(at, from + i % unit * size, static_cast<size_t>(4 * size) * sizeof(T));
  }
}

template <class V, int... lane>
inline auto join_lanes(V a, V b, std::integer_sequence<int, lane...>) {
  return __builtin_shufflevector(a, b, lane...);
}
// 64 bytes of pixels side by side.
template <class Unit>
inline I8 join(const Unit* unit) {
  constexpr int n = sizeof(Unit) / 8;
  typedef int64_t Words __attribute__((vector_size(sizeof(Unit))));
  if constexpr (n == 8) {
    return *unit;
  } else {
    const auto pair = [&](int i) {
      return join_lanes((Words)unit[i], (Words)unit[i + 1], std::make_integer_sequence<int, 2 * n>());
    };
    if constexpr (n == 4) return (I8)pair(0);
    if constexpr (n == 2) return (I8)join_lanes(pair(0), pair(2), std::make_integer_sequence<int, 4 * n>());
  }
}

// The part of a task that a block of channels has.
struct QuadTask {
  const QuadShape& quads;
  int64_t n, p, begin, columns, y_step;  // of the output: image, first row, columns
  QuadBlock block;
  int64_t pixels;        // side by side
  const char* weights;   // starts, then [quads][s][rows][4][kVecBytes]
  const float* factors;  // scales and biases
  int8_t *lines, *y[2];  // interleaved; the rows of an int8 output

  explicit QuadTask(const QuadShape& shape) : quads(shape) {}
};

struct DepthwiseQuads : Int8Conv {
  template <Kind kind>
  void run_slot(int64_t i, char* memory) const {
    const QuadShape quads(shape);
    const int64_t passes = ceil_div(shape.p(), quads.rows), tasks = shape.n * passes, q = shape.q();
    auto* const factors = reinterpret_cast<float*>(memory + cut.x_bytes);
    for (int64_t b = 0; b < quads.blocks; ++b) {
      const QuadBlock block = quad_block(shape.c, b);
      deal(epilogue.scale + block.channel, block.unit, 1, factors + 128 * b);
      deal(epilogue.bias + block.channel, block.unit, 1, factors + 128 * b + 64);
    }
    QuadTask task(quads);
    task.lines = reinterpret_cast<int8_t*>(memory);
    task.y_step = plan.args.y_stride[3];
    for (int64_t t = share(tasks, i, cut.slots); t < share(tasks, i + 1, cut.slots); ++t) {
      task.n = t / passes, task.p = t % passes * quads.rows;
      for (task.begin = 0; task.begin < q; task.begin += cut.columns) {
        task.columns = min(cut.columns, q - task.begin);
        for (int64_t b = 0; b < quads.blocks; ++b) {
          task.block = quad_block(shape.c, b);
          task.pixels = kVecBytes / task.block.unit;
          task.weights = body + b * quads.bytes();
          task.factors = factors + 128 * b;
          for (int64_t r = 0; r < 2; ++r) {
            task.y[r] = static_cast<int8_t*>(plan.args.y) + pixel_at(plan, task.n, task.p + r, task.begin).y +
                        task.block.channel;
          }
          run_task<kind>(task, min(quads.rows, shape.p() - task.p));
        }
      }
    }
  }

 private:
  template <Kind kind>
  void run_task(const QuadTask& task, int64_t rows) const {
    if (task.block.unit == 64) {
      interleave<64>(task);
    } else if (task.block.unit == 32) {
      interleave<32>(task);
    } else {
      interleave<16>(task);
    }
    if (rows == 2) {
      groups<kind, 2, 2>(task);
    } else if (task.quads.rows == 2) {  // the last row, by itself
      groups<kind, 1, 2>(task);
    } else {
      groups<kind, 1, 4>(task);
    }
  }

  // Groups of pixels that are side by side; the last ones begin earlier.
  template <Kind kind, int kRows, int kGroups>
  [[gnu::noinline]] void groups(const QuadTask& task) const {
    const int64_t groups = ceil_div(task.columns, task.pixels);
    if (groups < kGroups) {
      for (int64_t g = 0; g < groups; ++g) put<kind, kRows, 1>(task, g);
      return;
    }
    for (int64_t g = 0; g < groups; g += kGroups) put<kind, kRows, kGroups>(task, min(g, groups - kGroups));
  }

  // Lines y, y + dilation, ... of the padded x, interleaved: by quad, by phase, four planes with the values of each
  // position.
  template <int kUnit>
  void interleave(const QuadTask& task) const {
    constexpr int64_t kPixels = kVecBytes / kUnit;
    using Unit = std::conditional_t<kUnit == 64, I8, std::conditional_t<kUnit == 32, I8Half, I8Quarter>>;
    const QuadShape& quads = task.quads;
    // Said here: the stores of bytes below might change whatever else is in memory.
    const int64_t positions = round_up(task.columns, kPixels) + quads.reach, step = shape.stride_w, width = shape.w;
    const int64_t line = cut.line;
    int8_t blank[kUnit];
    std::memset(blank, plan.options.x_zero_point, sizeof blank);
    const int64_t first = task.begin * step - shape.pad_left, channel = task.block.channel;
    int8_t* to = task.lines;
    for (int64_t quad = 0; quad < quads.quads; ++quad) {
      const int8_t* from[4];
      int64_t distance[4];
      for (int64_t l = 0; l < 4; ++l) {
        const int64_t y = task.p * shape.stride_h - shape.pad_top + (4 * quad + l) * shape.dilation_h;
        const bool read = 4 * quad + l < shape.r + (quads.rows - 1) * shape.stride_h && y >= 0 && y < shape.h;
        from[l] = read ? x + task.n * stride[0] + y * stride[2] + channel : blank;
        distance[l] = read ? stride[3] : 0;
      }
      for (int64_t phase = 0; phase < quads.phases; ++phase, to += 4 * line) {
        for (int64_t m = 0; m < positions; m += kPixels) {
          const int64_t column = first + phase + m * step;
          const bool within = column >= 0 && column + (kPixels - 1) * step < width;
          I8 row[4], quad_of[4];
#pragma GCC unroll 4
          for (int l = 0; l < 4; ++l) {
            Unit unit[kPixels];
            if (within) {
              const int8_t* const at = from[l] + column * distance[l];
#pragma GCC unroll 4
              for (int64_t i = 0; i < kPixels; ++i) unit[i] = load<Unit>(at + i * step * distance[l]);
            } else {
              for (int64_t i = 0; i < kPixels; ++i) {
                const int64_t at = column + i * step;
                unit[i] = load<Unit>(at >= 0 && at < width ? from[l] + at * distance[l] : blank);
              }
            }
            row[l] = join(unit) ^ static_cast<int8_t>(-128);
          }
          interleave_quartered(row, quad_of);
#pragma GCC unroll 4
          for (int v = 0; v < 4; ++v) store(to + v * line + m * kUnit, quad_of[v]);
        }
      }
    }
  }

  template <Kind kind, int kRows, int kGroups>
  [[gnu::always_inline]] void put(const QuadTask& task, int64_t group) const {
    I32 sum[kRows][kGroups][4];
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) {
      const auto start = load<I32>(task.weights + v * kVecBytes);
#pragma GCC unroll 4
      for (int g = 0; g < kGroups; ++g) {
#pragma GCC unroll 2
        for (int r = 0; r < kRows; ++r) sum[r][g][v] = start;
      }
    }
    const char* tap = task.weights + 4 * kVecBytes;
    const int64_t line = cut.line, unit = task.block.unit, step = shape.stride_w, taps = shape.s;
    const int64_t tap_bytes = task.quads.rows * 4 * kVecBytes, quad_bytes = 4 * task.quads.phases * line;
    const int8_t* x = task.lines + group * kVecBytes;
    for (int64_t quad = task.quads.quads; quad > 0; --quad, x += quad_bytes) {
      int64_t phase = 0, position = 0;
      for (int64_t s = 0; s < taps; ++s, tap += tap_bytes) {
        const int8_t* const at = x + phase * 4 * line + position * unit;
#pragma GCC unroll 4
        for (int v = 0; v < 4; ++v) {
          I8 weight[kRows];
#pragma GCC unroll 2
          for (int r = 0; r < kRows; ++r) weight[r] = load<I8>(tap + (4 * r + v) * kVecBytes);
#pragma GCC unroll 4
          for (int g = 0; g < kGroups; ++g) {
            const auto quad_of = load<I8>(at + v * line + g * kVecBytes);
#pragma GCC unroll 2
            for (int r = 0; r < kRows; ++r) sum[r][g][v] = dot4(sum[r][g][v], quad_of, weight[r]);
          }
        }
        for (phase += shape.dilation_w; phase >= step; phase -= step) ++position;
      }
    }
    if constexpr (kind == Kind::plain || kind == Kind::curved) {
      put_bytes<kind, kRows, kGroups>(task, group, sum);
    } else {
      put_numbers<kind, kRows, kGroups>(task, group, sum);
    }
  }

  // The usual way: to adjacent int8 without a residual.
  template <Kind kind, int kRows, int kGroups>
  [[gnu::always_inline]] void put_bytes(const QuadTask& task, int64_t group, I32 (&sum)[kRows][kGroups][4]) const {
    const Epilogue& e = epilogue;
    const Int8ConvOptions& o = plan.options;
    F32 t[kRows][kGroups][4];
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) {
      const F32 scale = load<F32>(task.factors + v * kLanes), bias = load<F32>(task.factors + 64 + v * kLanes);
#pragma GCC unroll 4
      for (int g = 0; g < kGroups; ++g) {
#pragma GCC unroll 2
        for (int r = 0; r < kRows; ++r) t[r][g][v] = to_f32(sum[r][g][v]) * scale + bias;
      }
    }
    const auto each = [&](const auto& change) {
#pragma GCC unroll 2
      for (auto& row : t) {
#pragma GCC unroll 4
        for (auto& pixel : row) {
#pragma GCC unroll 4
          for (F32& value : pixel) value = change(value);
        }
      }
    };
    if constexpr (kind == Kind::curved) {
      for (auto& row : t) {
        for (auto& pixel : row) activate_four(pixel, o.activation, o.negative_slope);
      }
    }
    if (e.scaled) {
      const F32 scale = broadcast(o.out_scale);
      each([&](F32 value) { return value * scale; });
    }
    if (kind == Kind::curved || e.cut) {
      const F32 low = broadcast(e.low), high = broadcast(e.high);
      each([&](F32 value) { return min(high, max(low, value)); });
    }
    if constexpr (kind == Kind::curved) each([](F32 value) { return value == value ? value : F32{}; });
    const I16 zero = I16{} + static_cast<int16_t>(o.out_zero_point);
#pragma GCC unroll 4
    for (int g = 0; g < kGroups; ++g) {
#pragma GCC unroll 2
      for (int r = 0; r < kRows; ++r) {
        const F32(&f)[4] = t[r][g];
        const I8 bytes = to_i8_quartered(nearest(f[0]), nearest(f[1]), nearest(f[2]), nearest(f[3]), zero);
        put_pixels(task, r, group + g, bytes);
      }
    }
  }

  static void activate_four(F32 (&t)[4], Activation activation, float negative_slope) {
    const auto by = [&](auto constant) {
#pragma GCC unroll 4
      for (F32& value : t) value = activate(value, decltype(constant)::value, negative_slope);
    };
    switch (activation) {
      case Activation::silu:
        return by(std::integral_constant<Activation, Activation::silu>{});
      case Activation::hardswish:
        return by(std::integral_constant<Activation, Activation::hardswish>{});
      default:
        for (F32& value : t) value = activate(value, activation, negative_slope);
    }
  }

  // Of pixels side by side, those that are within the row.
  [[gnu::always_inline]] static void put_pixels(const QuadTask& task, int64_t row, int64_t group, I8 bytes) {
    int8_t* const to = task.y[row] + group * task.pixels * task.y_step;
    if (task.pixels == 1) return store(to, bytes);
    put_parts(task, to, group, bytes);
  }

  [[gnu::noinline]] static void put_parts(const QuadTask& task, int8_t* to, int64_t group, I8 bytes) {
    const int64_t count = min(task.pixels, task.columns - group * task.pixels);
    if (task.block.unit == 32) {
      I8Half halves[2];
      store(halves, bytes);
      for (int64_t i = 0; i < count; ++i) store(to + i * task.y_step, halves[i]);
    } else {
      I8Quarter quarters[4];
      store(quarters, bytes);
      for (int64_t i = 0; i < count; ++i) store(to + i * task.y_step, quarters[i]);
    }
  }

  template <Kind kind, int kRows, int kGroups>
  void put_numbers(const QuadTask& task, int64_t group, const I32 (&sum)[kRows][kGroups][4]) const {
    int32_t numbers[kRows][kGroups][64];
    for (int r = 0; r < kRows; ++r) {
      for (int g = 0; g < kGroups; ++g) {
        int32_t dealt[64];
        std::memcpy(dealt, sum[r][g], sizeof dealt);
        for (int i = 0; i < 64; i += 4) {
          std::memcpy(numbers[r][g] + i, dealt + i / 4 % 4 * 16 + i / 16 * 4, 4 * sizeof(int32_t));
        }
      }
    }
    const int64_t unit = task.block.unit, pixels = task.pixels;
    for (int64_t part = 0; part < unit; part += kLanes) {
      const int64_t channel = task.block.channel + part;
      const Channels<kind> outputs(epilogue, channel, channel, kLanes);
      for (int r = 0; r < kRows; ++r) {
        for (int g = 0; g < kGroups; ++g) {
          const int64_t at = (group + g) * pixels, count = min(pixels, task.columns - at);
          for (int64_t i = 0; i < count; ++i) {
            outputs.put(load<I32>(numbers[r][g] + i * unit + part),
                        pixel_at(plan, task.n, task.p + r, task.begin + at + i));
          }
        }
      }
    }
  }
};

// weight: (c, r, s).
inline void pack_quads(const ConvShape& s, int32_t x_zero_point, const int8_t* weight, char* body) {
  const QuadShape quads(s);
  const int64_t taps = s.r * s.s;
  std::memset(body, 0, static_cast<size_t>(Int8ConvLayout(s).group_bytes()));
  for (int64_t b = 0; b < quads.blocks; ++b, body += quads.bytes()) {
    const QuadBlock block = quad_block(s.c, b);
    const int8_t* const from = weight + block.channel * taps;
    int32_t starts[64];
    int8_t quad[4 * 64];
    for (int64_t c = 0; c < block.unit; ++c) {
      int32_t sum = 0;
      for (int64_t t = 0; t < taps; ++t) sum += from[c * taps + t];
      starts[c] = static_cast<int32_t>(0u - static_cast<uint32_t>(x_zero_point + 128) * static_cast<uint32_t>(sum));
    }
    deal(starts, block.unit, 1, reinterpret_cast<int32_t*>(body));
    auto* to = reinterpret_cast<int8_t*>(body) + 256;
    for (int64_t q = 0; q < quads.quads; ++q) {
      for (int64_t t = 0; t < s.s; ++t) {
        for (int64_t row = 0; row < quads.rows; ++row, to += 256) {
          for (int64_t c = 0; c < block.unit; ++c) {
            for (int64_t i = 0; i < 4; ++i) {
              const int64_t r = 4 * q + i - row * s.stride_h;
              quad[4 * c + i] = r >= 0 && r < s.r ? from[c * taps + r * s.s + t] : int8_t{0};
            }
          }
          deal(quad, block.unit, 4, to);
        }
      }
    }
  }
}

}  // namespace
}  // namespace PK_ISA
}  // namespace pk
