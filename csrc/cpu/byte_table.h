// A function of a byte, as a table of its 256 results: y[i] = table[x[i] + 128]. Internal linkage: ISA sources include
// it.
//
// In vectors of 64 bytes the table is 128 words in four registers, of which a permutation by words reads two at once;
// two of them and the bytes' top bits find the word, and their lowest bits the half of it. In vectors of 32 bytes it
// lies in 16 registers of 16 bytes each: the low half of x picks from all of them, and the high half, bit by bit, one
// of what they gave. NEON looks 64 bytes up at once. Else it is read byte by byte.
#pragma once

#include "cpu/vec.h"

namespace pk {
namespace PK_ISA {
namespace {

class ByteTable {
 public:
  explicit ByteTable(const int8_t* table) : table_(table) {
    if constexpr (kLanes == 16) {
      std::memcpy(words_, table, sizeof words_);
    } else if constexpr (kLanes == 8) {
      for (int k = 0; k < 16; ++k) {
        for (int part = 0; part < kVecBytes; part += 16) {
          std::memcpy(reinterpret_cast<int8_t*>(&parts_[k]) + part, table + 16 * k, 16);
        }
      }
    }
  }

  int8_t operator()(int8_t x) const { return table_[x + 128]; }

  I8 operator()(I8 x) const {
    const I8 index = x ^ static_cast<int8_t>(-128);
    if constexpr (kLanes == 16) {
      const Words both = bit_cast<Words>(index);
      return bit_cast<I8>(of_words(both & 255) | of_words(both >> 8) << 8);
    } else if constexpr (kLanes == 8) {
      const Words both = bit_cast<Words>(index);
      const I8 low = index & 15,
               bits[4] = {bit_cast<I8>(both << 3), bit_cast<I8>(both << 2), bit_cast<I8>(both << 1), index};
      I8 v[16];
#pragma GCC unroll 16
      for (int k = 0; k < 16; ++k) v[k] = pick(parts_[k], low);
#pragma GCC unroll 4
      for (int round = 0; round < 4; ++round) {
#pragma GCC unroll 8
        for (int k = 0; k < 8 >> round; ++k) v[k] = bits[round] < 0 ? v[2 * k + 1] : v[2 * k];
      }
      return v[0];
    } else {
#if defined(PK_NEON)
      return (I8)neon::look_up(table_, (uint8x16_t)index);
#endif
      I8 y;
      for (int i = 0; i < kVecBytes; ++i) y[i] = table_[x[i] + 128];
      return y;
    }
  }

 private:
  using Words = uint16_t __attribute__((vector_size(kVecBytes)));

  // Of indices of bytes, in words.
  Words of_words(Words index) const {
    const Words at = index >> 1;
    const Words first = __builtin_shuffle(words_[0], words_[1], at),
                second = __builtin_shuffle(words_[2], words_[3], at);
    const Words word = (index & 128) != 0 ? second : first;
    return word >> ((index & 1) << 3) & 255;
  }

  const int8_t* table_;
  Words words_[kLanes == 16 ? 4 : 1];
  I8 parts_[kLanes == 8 ? 16 : 1];
};

}  // namespace
}  // namespace PK_ISA
}  // namespace pk
