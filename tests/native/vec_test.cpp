// vec.h's functions with 4 lanes, which are intrinsics of SSE2 or NEON, element by element against plain arithmetic.
#define PK_ISA four_lanes
#define PK_LANES 4
#define PK_REGISTERS 16
#include "cpu/byte_table.h"
#include "test.h"

using namespace pk;
using namespace pk::four_lanes;

namespace {

std::mt19937 generator(1);

// Of all sizes, both signs.
int32_t any_int() { return static_cast<int32_t>(generator()) >> generator() % 32; }

template <class V>
V any() {
  V v;
  for (size_t i = 0; i < sizeof v / sizeof v[0]; ++i)
    v[i] = static_cast<std::remove_cvref_t<decltype(v[0])>>(any_int());
  return v;
}

int32_t clamp(int64_t x, int64_t low, int64_t high) {
  return static_cast<int32_t>(x < low ? low : x > high ? high : x);
}

bool same_bits(float a, float b) { return std::memcmp(&a, &b, sizeof a) == 0; }

void narrowing() {
  const I32 v[4] = {any<I32>(), any<I32>(), any<I32>(), any<I32>()};
  const I16 add = I16{} + static_cast<int16_t>(any_int());
  const I8 low = to_i8(v[0], v[1], v[2], v[3]), saturated = to_i8_saturated(v[0], v[1], v[2], v[3], add);
  const I8Quarter one = to_i8(v[0]);
  for (int i = 0; i < kVecBytes; ++i) {
    const int32_t x = v[i / kLanes][i % kLanes];
    EXPECT(low[i] == static_cast<int8_t>(x), "to_i8(%d) is %d", x, low[i]);
    const int32_t word = clamp(clamp(x, -32768, 32767) + add[0], -32768, 32767);
    EXPECT(saturated[i] == clamp(word, -128, 127), "to_i8_saturated(%d, %d) is %d", x, add[0], saturated[i]);
    if (i < kLanes) EXPECT(one[i] == static_cast<int8_t>(x), "to_i8(%d) is %d", x, one[i]);
  }
}

void widening() {
  const auto halves = any<I8Half>();
  const auto quarter = any<I8Quarter>();
  const auto words = any<I16Half>();
  const I16 wide = widen(halves);
  for (int i = 0; i < 2 * kLanes; ++i) EXPECT(wide[i] == halves[i], "widen(%d) is %d", halves[i], wide[i]);
  const I32 bytes = to_i32(quarter), from_words = to_i32(words);
  uint16_t bf16[kLanes];
  for (auto& b : bf16) b = static_cast<uint16_t>(generator());
  const F32 floats = load_bf16(bf16);
  for (int i = 0; i < kLanes; ++i) {
    EXPECT(bytes[i] == quarter[i] && from_words[i] == words[i], "to_i32");
    const uint32_t bits = static_cast<uint32_t>(bf16[i]) << 16;
    EXPECT(bit_cast<U32>(floats)[i] == bits, "load_bf16");
  }
}

void products() {
  const auto acc = any<I32>();
  const auto a = any<I16>(), b = any<I16>();
  const auto x = any<I8>(), y = any<I8>();
  const I32 pairs = dot2(I32{}, a >> 1, b), fours = dot4(acc >> 8, x, y);
  const I32 lanes =
      multiply_add(acc >> 8, to_i32(load<I16Half>(&a)), I32{factor(b[0]), factor(b[1]), factor(b[2]), factor(b[3])});
  for (int i = 0; i < kLanes; ++i) {
    EXPECT(pairs[i] == (a[2 * i] >> 1) * b[2 * i] + (a[2 * i + 1] >> 1) * b[2 * i + 1], "dot2");
    int32_t sum = acc[i] >> 8;
    for (int j = 4 * i; j < 4 * i + 4; ++j) sum += (kDot4Offset != 0 ? static_cast<uint8_t>(x[j]) : x[j]) * y[j];
    EXPECT(fours[i] == sum, "dot4");
    EXPECT(static_cast<int64_t>(lanes[i]) == static_cast<int32_t>((acc[i] >> 8) + static_cast<int64_t>(a[i]) * b[i]),
           "multiply_add");
  }
}

void tables() {
  int8_t table[256];
  for (auto& t : table) t = static_cast<int8_t>(any_int());
  const auto x = any<I8>();
  const I8 y = ByteTable(table)(x), picked = pick(load<I8>(table), x & 15);
  for (int i = 0; i < kVecBytes; ++i) {
    EXPECT(y[i] == table[x[i] + 128], "ByteTable");
    EXPECT(picked[i] == table[x[i] & 15], "pick");
  }
}

// A NaN in the second argument comes back, and of equals the second.
void comparing() {
  const float values[] = {0.0f, -0.0f, 1.0f, -1.0f, INFINITY, -INFINITY, NAN};
  for (const float a : values) {
    for (const float b : values) {
      const F32 least = min(broadcast(a), broadcast(b)), most = max(broadcast(a), broadcast(b));
      EXPECT(same_bits(least[1], a < b ? a : b), "min(%g, %g) is %g", a, b, least[1]);
      EXPECT(same_bits(most[1], a > b ? a : b), "max(%g, %g) is %g", a, b, most[1]);
    }
  }
}

void rounding() {
  for (const float x : {0.5f, 1.5f, 2.5f, -0.5f, -1.5f, -2.5f, 126.5f, 127.5f, 0.49999997f, 4194303.5f, -4194303.5f}) {
    const float expected = std::nearbyint(x);
    EXPECT(static_cast<float>(nearest(broadcast(x))[2]) == expected, "nearest(%g)", x);
    EXPECT(round(broadcast(x))[2] == expected, "round(%g)", x);
  }
  EXPECT((nearest(broadcast(NAN))[0] & 255) == 0, "the low byte of a NaN's");
#if defined(PK_NEON)
  const float x = 1.0f + 0x1p-12f;
  EXPECT(fma(broadcast(x), broadcast(x), broadcast(-1.0f))[0] == 0x1p-11f + 0x1p-24f, "one rounding");
#endif
}

// Nothing beyond `count` is read or written.
void partial() {
  for (int count = 0; count <= kLanes; ++count) {
    std::vector<float> from(static_cast<size_t>(count), 3.0f), to(kLanes, 7.0f);
    const F32 v = load_partial(from.data(), count);
    store_partial(to.data(), broadcast(5.0f), count);
    for (int i = 0; i < kLanes; ++i) {
      EXPECT(v[i] == (i < count ? 3.0f : 0.0f), "load_partial %d", count);
      EXPECT(to[static_cast<size_t>(i)] == (i < count ? 5.0f : 7.0f), "store_partial %d", count);
    }
  }
}

}  // namespace

int main() {
  for (int i = 0; i < 2000; ++i) narrowing(), widening(), products(), tables();
  comparing();
  rounding();
  partial();
  return test::finish();
}
