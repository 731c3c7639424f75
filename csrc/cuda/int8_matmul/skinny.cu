// A few rows of a (m <= 16) times b, transposed: out^T = b a^T, so that b's rows take the 16-row side of the matrix
// unit and a's rows its 8 columns; bound by reading b once.
//
// Fragments come straight from global memory. The order of K is free as long as both operands agree, so a lane loads 16
// neighbouring bytes of its row and feeds them as the four words that two products of 32 K want from it: no shared
// memory, no ldmatrix, whole sectors. A block has 32 rows of b; its eight warps share K, each 64 bytes of a row at a
// time with the next two or three times 64 in flight, and add their sums in shared memory, in order.
#include "cuda/int8_matmul/epilogue.cuh"
#include "cuda/launch.cuh"
#include "cuda/ptx.cuh"

namespace pk::cuda::int8 {
namespace {

constexpr int kColumns = 4;  // of the output, a thread
constexpr int kWarps = 8, kTall = 2, kRows = 16 * kTall, kStep = 64;
constexpr int kPitch = kRows + 4;  // of a token's sums in shared memory: the lanes of a store fall into all banks

// A lane's bytes of b for one step: rows g and g + 8 of each 16.
struct Step {
  uint4 b[kTall][2];
};

PK_DEVICE uint4 load_if(bool there, const int8_t* p, int offset) {
  return there ? *reinterpret_cast<const uint4*>(p + offset) : make_uint4(0, 0, 0, 0);
}

template <int kTokens, int kBuffers>
__global__ void __launch_bounds__(kWarps* kWarp, 2) skinny_kernel(Product p, Epilogue e) {
  int32_t* shared = dynamic_shared<int32_t>();  // (kWarps, kTokens, kPitch)
  const int warp = static_cast<int>(threadIdx.x) / kWarp, lane = static_cast<int>(threadIdx.x) % kWarp;
  const int g = lane / 4, t = lane % 4;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kRows;
  // Offsets of the lane's rows. Rows beyond the end are read as the last one, and not stored.
  const int8_t* b_first = p.b + first * p.b_stride + 16 * t;
  const int8_t* a_first = p.a + 16 * t;
  int b_rows[kTall][2], a_rows[kTokens / 8];
  PK_UNROLL
  for (int i = 0; i < kTall; ++i) {
    PK_UNROLL
    for (int h = 0; h < 2; ++h) b_rows[i][h] = row_offset(i * 16 + h * 8 + g, p.n - first, p.b_stride);
  }
  PK_UNROLL
  for (int j = 0; j < kTokens / 8; ++j) a_rows[j] = row_offset(j * 8 + g, p.m, p.a_stride);
  const int k = static_cast<int>(p.k), steps = ceil_div(k, kStep), slice = ceil_div(steps, static_cast<int>(gridDim.y));
  const int begin = static_cast<int>(blockIdx.y) * slice, end = begin + slice < steps ? begin + slice : steps;

  const auto there = [&](int step) { return step < end && step * kStep + 16 * t < k; };
  const auto load = [&](int step, Step& x) {
    PK_UNROLL
    for (int i = 0; i < kTall; ++i) {
      PK_UNROLL
      for (int h = 0; h < 2; ++h) x.b[i][h] = load_if(there(step), b_first, b_rows[i][h] + step * kStep);
    }
  };
  int32_t acc[kTall][kTokens / 8][4] = {};
  Step ring[kBuffers];
  PK_UNROLL
  for (int s = 0; s < kBuffers - 1; ++s) load(begin + warp + s * kWarps, ring[s]);
  for (int first_step = begin + warp; first_step < end; first_step += kBuffers * kWarps) {
    PK_UNROLL
    for (int s = 0; s < kBuffers; ++s) {
      const int step = first_step + s * kWarps;
      // The tokens come from L1 or L2 and are few: loaded when they are needed, before more of b is asked for.
      uint4 a[kTokens / 8];
      PK_UNROLL
      for (int j = 0; j < kTokens / 8; ++j) a[j] = load_if(there(step), a_first, a_rows[j] + step * kStep);
      load(step + (kBuffers - 1) * kWarps, ring[(s + kBuffers - 1) % kBuffers]);
      PK_UNROLL
      for (int i = 0; i < kTall; ++i) {
        const uint4 low = ring[s].b[i][0], high = ring[s].b[i][1];
        const uint32_t first_half[4] = {low.x, high.x, low.y, high.y}, second_half[4] = {low.z, high.z, low.w, high.w};
        PK_UNROLL
        for (int j = 0; j < kTokens / 8; ++j) {
          const uint32_t first_token[2] = {a[j].x, a[j].y}, second_token[2] = {a[j].z, a[j].w};
          ptx::mma_m16n8k32_s8(acc[i][j], first_half, first_token);
          ptx::mma_m16n8k32_s8(acc[i][j], second_half, second_token);
        }
      }
    }
  }

  int32_t* mine = shared + warp * kTokens * kPitch;
  PK_UNROLL
  for (int i = 0; i < kTall; ++i) {
    PK_UNROLL
    for (int j = 0; j < kTokens / 8; ++j) {
      PK_UNROLL
      for (int c = 0; c < 4; ++c) mine[(j * 8 + 2 * t + c % 2) * kPitch + i * 16 + c / 2 * 8 + g] = acc[i][j][c];
    }
  }
  __syncthreads();
  // Now a thread has four neighbouring rows of b, columns of the output, of one token.
  const int quad = static_cast<int>(threadIdx.x) % (kRows / kColumns);
  const int token = static_cast<int>(threadIdx.x) / (kRows / kColumns);
  const int64_t column = first + quad * kColumns;
  if (token >= kTokens || token >= p.m || column >= p.n) return;
  int4 sums = make_int4(0, 0, 0, 0);
  PK_UNROLL
  for (int w = 0; w < kWarps; ++w) {
    const int4 four = *reinterpret_cast<const int4*>(shared + (w * kTokens + token) * kPitch + quad * kColumns);
    sums.x += four.x, sums.y += four.y, sums.z += four.z, sums.w += four.w;
  }
  store_slice_row(p, e, static_cast<int>(blockIdx.y), token, column, sums);
}

template <int kTokens, int kBuffers>
Status launch_skinny(const Product& p, const Epilogue& e, void* stream) {
  return launch(skinny_kernel<kTokens, kBuffers>,
                {.grid = dim3(static_cast<unsigned>(ceil_div<int64_t>(p.n, kRows)), static_cast<unsigned>(p.split)),
                 .block = dim3(kWarps * kWarp),
                 .shared_bytes = kWarps * kTokens * kPitch * 4},
                stream, p, e);
}

}  // namespace

Status skinny(const Product& p, const Epilogue& e, void* stream) {
  return p.m <= 8 ? launch_skinny<8, 4>(p, e, stream) : launch_skinny<16, 3>(p, e, stream);
}

}  // namespace pk::cuda::int8
