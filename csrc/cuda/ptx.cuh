// Every PTX instruction that the kernels use by name, and nothing else contains asm. Each wrapper says what its lanes
// hold; tests/native/simt/ptx*.h have bodies of the same signatures that do exactly that on a CPU.
//
// Lane maps: `lane` is threadIdx % 32, g = lane / 4 (the "group"), t = lane % 4. Registers that hold several narrow
// elements hold the lowest index in the lowest bits.
#pragma once

#include "cuda/platform.cuh"
#include "cuda/tensor_map.h"

#ifndef __CUDACC__
#include "simt/ptx.h"
#include "simt/ptx_hopper.h"
#else

namespace pk::cuda::ptx {

// The 32-bit address of shared memory that PTX wants.
PK_DEVICE uint32_t shared_address(const void* p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }

// ---- Asynchronous copies, global to shared (sm_80) ----
// A thread's copies since its last commit form a group; wait<N> returns when at most N of the thread's latest groups
// are unfinished. Other threads see the bytes only after a barrier that follows the wait. Not valid: zeros are written
// and global memory is not read. Both addresses are aligned to the copy's size. 16 bytes go past L1 (.cg): for tiles
// that are read once a block.
PK_DEVICE void cp_async_16(void* shared, const void* global, bool valid = true) {
  const int bytes = valid ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global), "r"(bytes)
               : "memory");
}
PK_DEVICE void cp_async_8(void* shared, const void* global, bool valid = true) {
  const int bytes = valid ? 8 : 0;
  asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" ::"r"(shared_address(shared)), "l"(global), "r"(bytes)
               : "memory");
}
PK_DEVICE void cp_async_4(void* shared, const void* global, bool valid = true) {
  const int bytes = valid ? 4 : 0;
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(shared_address(shared)), "l"(global), "r"(bytes)
               : "memory");
}
PK_DEVICE void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int kPending>
PK_DEVICE void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// ---- Fragments from shared memory (sm_75) ----
// Loads 8 x 8 matrices of 16-bit elements, rows of 16 contiguous, 16-byte aligned bytes. Lane l gives the address of
// row l % 8 of matrix l / 8 (x2: lanes 0-15 count, the others' addresses are ignored but must be valid). Lane l
// receives in r[j] of matrix j the elements (row g, columns 2t and 2t + 1); trans: (rows 2t and 2t + 1, column g).
PK_DEVICE void ldmatrix_x4(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}
PK_DEVICE void ldmatrix_x2(uint32_t (&r)[2], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(shared_address(row))
               : "memory");
}
PK_DEVICE void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}
PK_DEVICE void ldmatrix_x2_trans(uint32_t (&r)[2], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(shared_address(row))
               : "memory");
}

// ---- Warp matrix products, d += a b (sm_80) ----
// d (16 x 8), 32-bit: d[0], d[1] = (row g, columns 2t, 2t + 1), d[2], d[3] = (row g + 8, the same columns).
//
// 16-bit elements: a (16 x 16): a[0] = (g, 2t..2t+1), a[1] = (g + 8, 2t..), a[2] = (g, 2t + 8..), a[3] = (g + 8, 2t
// + 8..); b (16 x 8): b[0] = (rows 2t..2t+1, column g), b[1] = (rows 2t + 8.., column g). So ldmatrix_x4 of a row-major
// a gives a's fragment (matrices: rows 0-7, rows 8-15, then both for columns 8-15), and ldmatrix_x2 of b stored column
// by column gives b's.
PK_DEVICE void mma_m16n8k16_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
      "%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
PK_DEVICE void mma_m16n8k16_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
      "%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
// tf32 elements, float bits of which the lowest 13 are ignored (round first: gemm/mainloop.cuh). a (16 x 8): a[0] = (g,
// t), a[1] = (g + 8, t), a[2] = (g, t + 4), a[3] = (g + 8, t + 4); b (8 x 8): b[0] = (t, g), b[1] = (t + 4, g).
PK_DEVICE void mma_m16n8k8_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
      "%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
// int8 elements, exact sums (modulo 2^32). a (16 x 32): a[0] = (g, 4t..4t+3), a[1] = (g + 8, 4t..), a[2] = (g, 4t
// + 16..), a[3] = (g + 8, 4t + 16..); b (32 x 8): b[0] = (rows 4t..4t+3, column g), b[1] = (rows 4t + 16.., column g).
// As bytes this is the 16-bit map, so ldmatrix serves it too.
PK_DEVICE void mma_m16n8k32_s8(int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// ---- Memory that other blocks write and read ----
// Unordered, but straight from L2: for polling the data itself. Each of the 16 bytes' 4-byte words arrives whole.
PK_DEVICE uint4 load_relaxed_16(const void* p) {
  uint4 v;
  asm volatile("ld.relaxed.gpu.global.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(p)
               : "memory");
  return v;
}
PK_DEVICE void store_relaxed_16(void* p, uint4 v) {
  asm volatile("st.relaxed.gpu.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(p), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w)
               : "memory");
}
PK_DEVICE void store_relaxed(uint32_t* p, uint32_t value) {
  asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(p), "r"(value) : "memory");
}
// Goes into every polling loop, where the poll has failed.
PK_DEVICE void backoff() { asm volatile("nanosleep.u32 20;"); }

// ---- Named barriers ----
// Arrives and waits at barrier `id` (1-15; 0 is __syncthreads) of `threads` threads, a multiple of 32.
PK_DEVICE void barrier_sync(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// ---- Fast functions, of about single precision less two bits ----
PK_DEVICE float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
PK_DEVICE float reciprocal_approx(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// ======== Hopper (sm_90; wgmma and setmaxnreg: sm_90a) ========
//
// ---- mbarriers: 8 bytes of shared memory, 8-byte aligned ----
// A phase ends when all its `count` arrivals are in and its transaction count (bytes expected less bytes that came) is
// zero; the next phase starts by itself with `count` arrivals pending. The first phase has parity 0, the next 1, and so
// on: wait(parity) returns once the phase of that parity has ended. So a fresh barrier waited for with parity 1 does
// not block: that is how a producer finds empty buffers in its first round.
// One thread initialises, then fence_mbarrier_init, then __syncthreads (or a cluster barrier, if others arrive too).
PK_DEVICE void mbarrier_init(uint64_t* barrier, uint32_t count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(count) : "memory");
}
// Makes the initialisation visible to TMA and to the cluster.
PK_DEVICE void fence_mbarrier_init() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
PK_DEVICE void mbarrier_arrive(uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}
// Expects so many bytes more in this phase, then arrives.
PK_DEVICE void mbarrier_arrive_expect_tx(uint64_t* barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
               : "memory");
}
// One try, which may suspend the thread for a while. Acquires: what was written before the arrivals is seen.
PK_DEVICE bool mbarrier_try_wait(uint64_t* barrier, uint32_t parity) {
  uint32_t done;
  asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
               : "=r"(done)
               : "r"(shared_address(barrier)), "r"(parity)
               : "memory");
  return done != 0;
}
PK_DEVICE void mbarrier_wait(uint64_t* barrier, uint32_t parity) {
  while (!mbarrier_try_wait(barrier, parity)) {
  }
}
// The same where other blocks of the cluster arrive, or write with st_async: acquires at cluster scope.
PK_DEVICE void mbarrier_wait_cluster(uint64_t* barrier, uint32_t parity) {
  uint32_t done;
  do {
    asm volatile(
        "{ .reg .pred p; mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
        : "=r"(done)
        : "r"(shared_address(barrier)), "r"(parity)
        : "memory");
  } while (done == 0);
}

// ---- TMA: one thread asks, the copy engine does it ----
// TMA and wgmma reach shared memory through the async proxy, which does not see ordinary stores that no proxy fence
// follows. None is here: what wgmma reads, TMA wrote.
//
// `shared` is 128-byte aligned (1024 with the 128-byte swizzle). Loads count their bytes, out-of-range zeros included,
// on `barrier`, whose phase expects box bytes each. Coordinates are in elements, innermost dimension first, and may be
// negative or past the end: such elements are zeros. The box lies dense in shared memory, innermost dimension first;
// under the 128-byte swizzle (rows of 128 bytes) bits 4-6 of each byte's address are xored with its bits 7-9.
PK_DEVICE void tma_load_2d(void* shared, const TensorMap* map, uint64_t* barrier, int x0, int x1) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];" ::
          "r"(shared_address(shared)),
      "l"(map), "r"(shared_address(barrier)), "r"(x0), "r"(x1)
      : "memory");
}
PK_DEVICE void tma_load_3d(void* shared, const TensorMap* map, uint64_t* barrier, int x0, int x1, int x2) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5}], "
      "[%2];" ::"r"(shared_address(shared)),
      "l"(map), "r"(shared_address(barrier)), "r"(x0), "r"(x1), "r"(x2)
      : "memory");
}
// The box goes to the same offset of every block of the cluster whose bit is set in `blocks`, and counts on the barrier
// of the same offset there.
PK_DEVICE void tma_load_2d_multicast(void* shared, const TensorMap* map, uint64_t* barrier, int x0, int x1,
                                     uint16_t blocks) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1, "
      "{%3, %4}], [%2], %5;" ::"r"(shared_address(shared)),
      "l"(map), "r"(shared_address(barrier)), "r"(x0), "r"(x1), "h"(blocks)
      : "memory");
}
PK_DEVICE void tma_load_3d_multicast(void* shared, const TensorMap* map, uint64_t* barrier, int x0, int x1, int x2,
                                     uint16_t blocks) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1, "
      "{%3, %4, %5}], [%2], %6;" ::"r"(shared_address(shared)),
      "l"(map), "r"(shared_address(barrier)), "r"(x0), "r"(x1), "r"(x2), "h"(blocks)
      : "memory");
}
// im2col, on a map of an Im2colView (tensor_map.h): a matrix of pixels_per_column rows and channels_per_pixel columns.
// Rows are the filter's base pixels, starting at (n, h, w) and going on along w, h and n by the traversal strides
// within the bounding box; row i holds channels c.. of the pixel that lies (offset_h, offset_w) from its base pixel (0
// to 255; the filter's tap times the dilation), zeros outside of the image.
PK_DEVICE void tma_load_im2col_4d(void* shared, const TensorMap* map, uint64_t* barrier, int c, int w, int h, int n,
                                  uint16_t offset_w, uint16_t offset_h) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.im2col.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, "
      "%6}], [%2], {%7, %8};" ::"r"(shared_address(shared)),
      "l"(map), "r"(shared_address(barrier)), "r"(c), "r"(w), "r"(h), "r"(n), "h"(offset_w), "h"(offset_h)
      : "memory");
}

// ---- wgmma: d (64 x n) (+)= a (64 x k) b (k x n), by the 128 threads of a warpgroup, asynchronously ----
// k is 16 for 16-bit elements, 32 for int8: 32 bytes. n follows from d: n / 2 registers, n = 8, 16, 32, 64, 128, 256.
// accumulate false: d = a b. All 128 threads (four warps, the first one's index a multiple of 4) call each together.
//
// Lane map of d: warp w of the warpgroup has rows 16w..16w+15 and d[4j], d[4j + 1] = (row 16w + g, columns 8j + 2t,
// 8j + 2t + 1), d[4j + 2], d[4j + 3] = (row 16w + g + 8, the same columns).
//
// Use: wgmma_fence (before the first product, and wherever registers of d were touched since), products, wgmma_commit,
// wgmma_wait<pending>(d...). Between product and wait nothing touches d or the shared operands.
PK_DEVICE void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
PK_DEVICE void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Tells the compiler that registers change here, so that it moves no use of them across.
template <int registers>
PK_DEVICE void touch(float (&d)[registers]) {
  PK_UNROLL
  for (int i = 0; i < registers; ++i) asm volatile("" : "+f"(d[i])::"memory");
}
template <int registers>
PK_DEVICE void touch(int32_t (&d)[registers]) {
  PK_UNROLL
  for (int i = 0; i < registers; ++i) asm volatile("" : "+r"(d[i])::"memory");
}
// Waits until at most kPending of the latest groups are unfinished; d: all accumulators that are complete then.
template <int kPending, class... D>
PK_DEVICE void wgmma_wait(D&... d) {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
  (touch(d), ...);
}

// The descriptor of a matrix in shared memory, K-major with the 128-byte swizzle: row r's 128 bytes of K start at
// 128 r, bits 4-6 of each byte's address xored with its bits 7-9, as TMA writes it. `tile` is 1024-byte aligned, plus
// 1024 for each 8 rows to skip, plus 32 j to take the j-th 32 bytes of K (j < 4).
//   bits 0-13   start address / 16       bits 16-29  leading offset / 16 (unused in this layout: 1)
//   bits 32-45  stride offset / 16: from 8 rows to the next 8, 1024 bytes
//   bits 49-51  base offset: 0, since the swizzle's pattern starts at multiples of 1024
//   bits 62-63  swizzle: 1 = 128 bytes (0 none, 2 = 64, 3 = 32)
PK_DEVICE uint64_t wgmma_descriptor(const void* tile) {
  return static_cast<uint64_t>((shared_address(tile) & 0x3FFFF) >> 4) | uint64_t{1} << 16 |
         static_cast<uint64_t>(1024 >> 4) << 32 | uint64_t{1} << 62;
}

// Register lists of n / 2 names, and their constraints.
#define PK_LIST_8 "%0, %1, %2, %3"
#define PK_LIST_16 PK_LIST_8 ", %4, %5, %6, %7"
#define PK_LIST_32 PK_LIST_16 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define PK_LIST_64 PK_LIST_32 ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define PK_LIST_128                                                                                             \
  PK_LIST_64                                                                                                    \
  ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, " \
  "%53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define PK_LIST_256                                                                                                  \
  PK_LIST_128                                                                                                        \
  ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, %82, %83, %84, %85, " \
  "%86, %87, %88, %89, %90, %91, %92, %93, %94, %95, %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, " \
  "%107, %108, %109, %110, %111, %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, "     \
  "%125, %126, %127"
#define PK_TIE_8(type, i) type(d[i]), type(d[i + 1]), type(d[i + 2]), type(d[i + 3])
#define PK_TIE_16(type, i) PK_TIE_8(type, i), PK_TIE_8(type, i + 4)
#define PK_TIE_32(type, i) PK_TIE_16(type, i), PK_TIE_16(type, i + 8)
#define PK_TIE_64(type, i) PK_TIE_32(type, i), PK_TIE_32(type, i + 16)
#define PK_TIE_128(type, i) PK_TIE_64(type, i), PK_TIE_64(type, i + 32)
#define PK_TIE_256(type, i) PK_TIE_128(type, i), PK_TIE_128(type, i + 64)

// wgmma_f16, wgmma_bf16 and wgmma_s8 for one n; o0.. are the numbers of the operands that follow the n / 2 of d.
#define PK_WGMMA_ELEMENT(name, element, scales, n, k, type, o0, o1, o2)                                              \
  PK_DEVICE void name(element(&d)[n / 2], uint64_t a, uint64_t b, bool accumulate) {                                 \
    asm volatile("{ .reg .pred p; setp.ne.u32 p, " o2 ", 0; wgmma.mma_async.sync.aligned.m64n" #n k " {" PK_LIST_##n \
                 "}, " o0 ", " o1 ", p" scales "; }"                                                                 \
                 : PK_TIE_##n(type, 0)                                                                               \
                 : "l"(a), "l"(b), "r"(static_cast<uint32_t>(accumulate))                                            \
                 : "memory");                                                                                        \
  }
#define PK_WGMMA(n, o0, o1, o2)                                                                 \
  PK_WGMMA_ELEMENT(wgmma_f16, float, ", 1, 1, 0, 0", n, "k16.f32.f16.f16", "+f", o0, o1, o2)    \
  PK_WGMMA_ELEMENT(wgmma_bf16, float, ", 1, 1, 0, 0", n, "k16.f32.bf16.bf16", "+f", o0, o1, o2) \
  PK_WGMMA_ELEMENT(wgmma_s8, int32_t, "", n, "k32.s32.s8.s8", "+r", o0, o1, o2)
PK_WGMMA(8, "%4", "%5", "%6")
PK_WGMMA(16, "%8", "%9", "%10")
PK_WGMMA(32, "%16", "%17", "%18")
PK_WGMMA(64, "%32", "%33", "%34")
PK_WGMMA(128, "%64", "%65", "%66")
PK_WGMMA(256, "%128", "%129", "%130")
#undef PK_WGMMA
#undef PK_WGMMA_ELEMENT

// Takes registers from, or gives them to, the block's pool: each warp of a warpgroup calls it; registers a thread, a
// multiple of 8 from 24 to 256. increase waits until other warpgroups have given enough back.
template <int registers>
PK_DEVICE void registers_increase() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(registers));
}
template <int registers>
PK_DEVICE void registers_decrease() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(registers));
}

// ---- Clusters: blocks that reach each other's shared memory ----
// A block's shared memory may be touched only after all blocks have started, and until the last access is over: so a
// cluster barrier goes first and another goes last.
PK_DEVICE uint32_t cluster_rank() {
  uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}
// A barrier of all threads of all blocks: arrive releases, wait acquires. Each thread arrives, then waits.
PK_DEVICE void cluster_arrive() { asm volatile("barrier.cluster.arrive.release;" ::: "memory"); }
PK_DEVICE void cluster_wait() { asm volatile("barrier.cluster.wait.acquire;" ::: "memory"); }
// The cluster-wide address of what lies at `shared` in the block of that rank.
PK_DEVICE uint32_t cluster_address(const void* shared, uint32_t rank) {
  uint32_t address;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(address) : "r"(shared_address(shared)), "r"(rank));
  return address;
}
// Arrives at a barrier of any block of the cluster, given by its cluster address, by a thread that has only read what
// may be overwritten now: without the fence of all memory that a release at cluster scope costs.
PK_DEVICE void mbarrier_arrive_cluster_read(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(barrier) : "memory");
}
// A store whose 16 bytes, 16-byte aligned, count on an mbarrier of the same block as the destination (both cluster
// addresses): the waiter (mbarrier_wait_cluster) sees the data without any fence.
PK_DEVICE void st_async_16(uint32_t address, uint4 v, uint32_t barrier) {
  asm volatile(
      "st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.u32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(address),
      "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w), "r"(barrier)
      : "memory");
}

}  // namespace pk::cuda::ptx
#endif  // __CUDACC__
