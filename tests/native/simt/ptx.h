// csrc/cuda/ptx.cuh on a CPU: for each wrapper a body that moves and multiplies exactly what the instruction does, by
// the lane maps that are documented there.
#pragma once

#include "simt/cuda.h"

namespace pk::cuda::ptx {

// Shared memory has 32-bit addresses: offsets into the block's.
inline uint32_t shared_address(const void* p) {
  const auto offset = static_cast<const unsigned char*>(p) - simt::current->block->shared;
  if (offset < 0 || static_cast<size_t>(offset) >= simt::current->block->shared_bytes) {
    simt::fail("an address that has to be in the block's shared memory is not");
  }
  return static_cast<uint32_t>(offset);
}

// ---- cp.async ----
// In ptx.cpp, as what they keep is the harness's, not the kernel's.
void cp_async(void* shared, const void* global, int bytes, bool valid);
inline void cp_async_16(void* shared, const void* global, bool valid = true) { cp_async(shared, global, 16, valid); }
inline void cp_async_8(void* shared, const void* global, bool valid = true) { cp_async(shared, global, 8, valid); }
inline void cp_async_4(void* shared, const void* global, bool valid = true) { cp_async(shared, global, 4, valid); }
void cp_async_commit();
void cp_async_wait(size_t pending);
template <int kPending>
void cp_async_wait() {
  cp_async_wait(size_t{kPending});
}

// ---- ldmatrix ----
struct LoadMatrix {
  uint32_t* registers;
  const void* row;
};
template <int kMatrices, bool kTranspose>
void ldmatrix(uint32_t* registers, const void* row, const char* tag) {
  if (shared_address(row) % 16) simt::fail("ldmatrix: a row is not aligned to 16 bytes");
  LoadMatrix mine = {registers, row};
  simt::collective(0xffffffff, tag, &mine, [](void** all, uint32_t) {
    for (int j = 0; j < kMatrices; ++j) {
      const auto element = [&](int r, int c) {
        uint16_t value;
        const auto* from = static_cast<const LoadMatrix*>(all[8 * j + r])->row;
        std::memcpy(&value, static_cast<const char*>(from) + 2 * c, 2);
        return value;
      };
      for (int l = 0; l < 32; ++l) {
        const int g = l / 4, t = l % 4;
        const uint32_t low = kTranspose ? element(2 * t, g) : element(g, 2 * t);
        const uint32_t high = kTranspose ? element(2 * t + 1, g) : element(g, 2 * t + 1);
        static_cast<LoadMatrix*>(all[l])->registers[j] = low | high << 16;
      }
    }
  });
}
inline void ldmatrix_x4(uint32_t (&r)[4], const void* row) { ldmatrix<4, false>(r, row, "ldmatrix.x4"); }
inline void ldmatrix_x2(uint32_t (&r)[2], const void* row) { ldmatrix<2, false>(r, row, "ldmatrix.x2"); }
inline void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row) { ldmatrix<4, true>(r, row, "ldmatrix.x4.trans"); }
inline void ldmatrix_x2_trans(uint32_t (&r)[2], const void* row) { ldmatrix<2, true>(r, row, "ldmatrix.x2.trans"); }

// ---- mma ----
template <class Sum>
struct WarpProduct {
  Sum* d;
  const uint32_t* a;
  const uint32_t* b;
};

// Products of m16n8kK. Elements are `kPerRegister` to a 32-bit register, so that a register holds elements
// kPerRegister * t ... of its quad of columns; a has 4 registers, (row g or g + 8) x (first or second half of k), or
// for b 2, one a half of k.
template <int kK, int kPerRegister, class Sum, class Get>
void warp_product(Sum (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], const char* tag, Get) {
  WarpProduct<Sum> mine = {d, a, b};
  simt::collective(0xffffffff, tag, &mine, [](void** all, uint32_t) {
    const auto lane = [&](int l) { return static_cast<const WarpProduct<Sum>*>(all[l]); };
    Sum left[16][kK], right[kK][8];
    for (int l = 0; l < 32; ++l) {
      const int g = l / 4, t = l % 4;
      for (int half = 0; half < 2; ++half) {
        for (int e = 0; e < kPerRegister; ++e) {
          const int k = half * (kK / 2) + kPerRegister * t + e;
          left[g][k] = Get{}(lane(l)->a[2 * half], e);
          left[g + 8][k] = Get{}(lane(l)->a[2 * half + 1], e);
          right[k][g] = Get{}(lane(l)->b[half], e);
        }
      }
    }
    for (int l = 0; l < 32; ++l) {
      const int g = l / 4, t = l % 4;
      for (int i = 0; i < 4; ++i) {
        const int row = g + (i / 2) * 8, column = 2 * t + i % 2;
        if constexpr (std::is_integral_v<Sum>) {
          uint32_t sum = static_cast<uint32_t>(lane(l)->d[i]);
          for (int k = 0; k < kK; ++k) sum += static_cast<uint32_t>(left[row][k] * right[k][column]);
          lane(l)->d[i] = static_cast<Sum>(sum);
        } else {
          // The unit's own order and rounding are not specified; a double keeps this side of the error out.
          double sum = lane(l)->d[i];
          for (int k = 0; k < kK; ++k) sum += static_cast<double>(left[row][k]) * right[k][column];
          lane(l)->d[i] = static_cast<Sum>(sum);
        }
      }
    }
  });
}

inline void mma_m16n8k16_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  warp_product<16, 2>(d, a, b, "mma.m16n8k16.f16",
                      [](uint32_t r, int e) { return simt::half_to_float(static_cast<uint16_t>(r >> 16 * e)); });
}
inline void mma_m16n8k16_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  warp_product<16, 2>(d, a, b, "mma.m16n8k16.bf16",
                      [](uint32_t r, int e) { return std::bit_cast<float>(r >> 16 * e << 16); });
}
inline void mma_m16n8k8_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  warp_product<8, 1>(d, a, b, "mma.m16n8k8.tf32",
                     [](uint32_t r, int) { return std::bit_cast<float>(r & 0xffffe000u); });
}
inline void mma_m16n8k32_s8(int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  warp_product<32, 4>(d, a, b, "mma.m16n8k32.s8",
                      [](uint32_t r, int e) { return int32_t{static_cast<int8_t>(r >> 8 * e)}; });
}

// ---- Memory that other blocks write and read ----
// Loads don't let others run: they stand in polling loops, and those have backoff().
uint4 load_relaxed_16(const void* p);
void store_relaxed(uint32_t* p, uint32_t value);
// Only the four words are whole: another thread may see some of them new and some old.
void store_relaxed_16(void* p, uint4 v);
inline void backoff() { simt::spin(); }

inline void barrier_sync(int id, int threads) { simt::barrier_sync(id, static_cast<unsigned>(threads)); }

inline float exp2_approx(float x) { return std::exp2(x); }
inline float reciprocal_approx(float x) { return 1.0f / x; }

}  // namespace pk::cuda::ptx
