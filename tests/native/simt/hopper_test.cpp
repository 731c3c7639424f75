// The harness' Hopper half: small kernels through every wrapper against naive results, and faults that must be caught:
// a missing mbarrier wait, a missing wgmma wait, a wrong swizzle, a swapped lane, a buffer filled again before it is
// empty, operands of wgmma that TMA didn't write, counts that are wrong (a deadlock, reported).
#include "cuda/launch.cuh"
#include "cuda/products.h"
#include "cuda/ptx.cuh"
#include "cuda/tensor_map.h"
#include "simt/simt.h"
#include "test.h"

using namespace pk::cuda;
using pk::ceil_div;
using pk::DType;

namespace {

enum class Fault {
  none,
  no_full_wait,
  no_empty_wait,
  no_wgmma_wait,
  no_wgmma_fence,
  swapped_lane,
  wrong_swizzle,
  wrong_parity,
  too_few_bytes,
  too_many_arrivals,
  no_init,
  no_barrier,
};

// How many of the first `count` schedules catch what `is_right` runs.
template <class F>
int catches(F is_right, size_t count = simt::schedules().size()) {
  int caught = 0;
  for (size_t i = 0; i < count; ++i) {
    simt::Use use(simt::schedules()[i]);
    const bool right = is_right();
    const bool failed = !simt::take_error().empty();
    caught += !right || failed;
  }
  return caught;
}
// What the first schedule says of it.
template <class F>
std::string first_error(F run) {
  simt::Use use(simt::schedules()[0]);
  (void)run();
  return simt::take_error();
}
bool contains(const std::string& text, const char* part) { return text.find(part) != std::string::npos; }

// ---- Products: TMA, mbarriers, wgmma ----

template <class T>
using Sum = std::conditional_t<std::is_same_v<T, int8_t>, int32_t, float>;

template <int kRegisters>
PK_DEVICE void product(f16, float (&d)[kRegisters], uint64_t a, uint64_t b, bool more) {
  ptx::wgmma_f16(d, a, b, more);
}
template <int kRegisters>
PK_DEVICE void product(bf16, float (&d)[kRegisters], uint64_t a, uint64_t b, bool more) {
  ptx::wgmma_bf16(d, a, b, more);
}
template <int kRegisters>
PK_DEVICE void product(int8_t, int32_t (&d)[kRegisters], uint64_t a, uint64_t b, bool more) {
  ptx::wgmma_s8(d, a, b, more);
}

// d (64 x n) = a (64 x k) b (n x k)^T: a warpgroup multiplies what one thread of another fetches, in two buffers.
template <class T, int kN, Fault kFault>
__global__ void pipeline(const __grid_constant__ TensorMap map_a, const __grid_constant__ TensorMap map_b, Sum<T>* d,
                         int k) {
  constexpr int kRow = 128 / sizeof(T), kStageBytes = (64 + kN) * 128;
  unsigned char* const shared = dynamic_shared<unsigned char>();
  auto* const full = reinterpret_cast<uint64_t*>(shared + 2 * kStageBytes);
  uint64_t* const empty = full + 2;
  const int tiles = ceil_div(k, kRow);
  if (threadIdx.x == 0 && kFault != Fault::no_init) {
    for (int i = 0; i < 2; ++i) {
      ptx::mbarrier_init(full + i, 1);
      ptx::mbarrier_init(empty + i, 4);
    }
    ptx::fence_mbarrier_init();
  }
  __syncthreads();
  if (threadIdx.x >= 128) {
    if (threadIdx.x != 128) return;
    for (int tile = 0; tile < tiles; ++tile) {
      unsigned char* const stage = shared + tile % 2 * kStageBytes;
      if (kFault != Fault::no_empty_wait) ptx::mbarrier_wait(empty + tile % 2, (tile / 2 & 1) ^ 1);
      ptx::mbarrier_arrive_expect_tx(full + tile % 2, kStageBytes - (kFault == Fault::too_few_bytes ? 16 : 0));
      if (kFault == Fault::too_many_arrivals && tile == 0) ptx::mbarrier_arrive(full);
      ptx::tma_load_2d(stage, &map_a, full + tile % 2, tile * kRow, 0);
      ptx::tma_load_2d(stage + 64 * 128, &map_b, full + tile % 2, tile * kRow, 0);
    }
    return;
  }
  const int lane = static_cast<int>(threadIdx.x % 32), warp = static_cast<int>(threadIdx.x / 32);
  Sum<T> sum[kN / 2];
  for (int tile = 0; tile < tiles; ++tile) {
    unsigned char* const stage = shared + tile % 2 * kStageBytes;
    if (kFault != Fault::no_full_wait) {
      ptx::mbarrier_wait(full + tile % 2, (tile / 2 & 1) ^ (kFault == Fault::wrong_parity));
    }
    if (kFault != Fault::no_wgmma_fence) ptx::wgmma_fence();
    for (int j = 0; j < 4; ++j) {
      product(T{}, sum, ptx::wgmma_descriptor(stage + 32 * j), ptx::wgmma_descriptor(stage + 64 * 128 + 32 * j),
              tile + j > 0);
    }
    ptx::wgmma_commit();
    if (kFault != Fault::no_wgmma_wait) ptx::wgmma_wait<0>(sum);
    if (lane == 0) ptx::mbarrier_arrive(empty + tile % 2);
  }
  if (kFault == Fault::swapped_lane) {
    sum[1] = __shfl_sync(0xffffffff, sum[1], lane == 6 ? 7 : lane == 7 ? 6 : lane);
  }
  for (int i = 0; i < kN / 2; ++i) {
    const int row = warp * 16 + lane / 4 + i / 2 % 2 * 8, column = i / 4 * 8 + lane % 4 * 2 + i % 2;
    d[row * kN + column] = sum[i];
  }
}

// Each float sum of `k` products of about 1 within its rounding; integers are equal or not.
template <class S>
bool near(const std::vector<S>& got, const std::vector<double>& expected, int k) {
  bool right = true;
  for (size_t i = 0; i < got.size(); ++i) {
    const double difference = std::fabs(static_cast<double>(got[i]) - expected[i]);
    right = right && difference <= (std::is_integral_v<S> ? 0.0 : 1e-6 * k);
  }
  return right;
}

template <class T, int kN, Fault kFault>
bool pipeline_is_right() {
  // Three tiles and a bit: the buffers are used twice, and the last tile has a tail that TMA fills with zeros.
  const int k = 3 * 128 / static_cast<int>(sizeof(T)) + 16;
  const auto a = operand<T>(static_cast<size_t>(64 * k), 1), b = operand<T>(static_cast<size_t>(kN * k), 2);
  std::vector<Sum<T>> d(64 * kN);
  TensorMap map_a, map_b;
  const int row = 128 / sizeof(T);
  bool right = bool(make_tensor_map(matrix_view(a.data(), kDType<T>, 64, k, k, 64, row), &map_a)) &&
               bool(make_tensor_map(matrix_view(b.data(), kDType<T>, kN, k, k, kN, row,
                                                kFault == Fault::wrong_swizzle ? Swizzle::none : Swizzle::b128),
                                    &map_b));
  right = right && bool(launch(pipeline<T, kN, kFault>, {.block = dim3(256), .shared_bytes = 2 * (64 + kN) * 128 + 32},
                               nullptr, map_a, map_b, d.data(), k));
  return right && near(d, product_of(a, b, 64, kN, k, 0, k), k);
}

// ---- TMA ----

// Copies what one load brings to `out`. kRank 4: im2col.
template <int kRank>
__global__ void load(const __grid_constant__ TensorMap map, int4 at, int2 offset, unsigned char* out, int bytes) {
  unsigned char* const shared = dynamic_shared<unsigned char>();
  auto* const full = reinterpret_cast<uint64_t*>(shared + ceil_div(bytes, 8) * 8);
  if (threadIdx.x == 0) {
    ptx::mbarrier_init(full, 1);
    ptx::fence_mbarrier_init();
    ptx::mbarrier_arrive_expect_tx(full, static_cast<uint32_t>(bytes));
    if (kRank == 2) ptx::tma_load_2d(shared, &map, full, at.x, at.y);
    if (kRank == 3) ptx::tma_load_3d(shared, &map, full, at.x, at.y, at.z);
    if (kRank == 4) {
      ptx::tma_load_im2col_4d(shared, &map, full, at.x, at.y, at.z, at.w, static_cast<uint16_t>(offset.x),
                              static_cast<uint16_t>(offset.y));
    }
  }
  __syncthreads();
  ptx::mbarrier_wait(full, 0);
  for (int i = static_cast<int>(threadIdx.x); i < bytes; i += 32) out[i] = shared[i];
}

// The byte of a swizzled box where byte i of the dense one lies.
size_t swizzled(size_t i) { return i ^ (i / 128 % 8) * 16; }

// Tensors of float whose elements are their own index, in boxes that reach out at every side.
template <int kRank>
bool tile_is_right(bool swizzle) {
  const int64_t size[3] = {36, 5, 4};
  const int box[3] = {swizzle ? 32 : 8, 4, 3}, at[3] = {swizzle ? 12 : -4, -1, 2};
  TiledView view;
  view.rank = kRank;
  view.swizzle = swizzle ? Swizzle::b128 : Swizzle::none;
  int64_t elements = 1, box_elements = 1;
  for (int d = 0; d < kRank; ++d) {
    view.size[d] = size[d];
    view.stride[d] = elements;
    view.box[d] = box[d];
    elements *= size[d] + (d == 0 ? 4 : 0);
    box_elements *= box[d];
  }
  simt::Guarded<float> x(static_cast<size_t>(elements));
  for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i) + 1;
  view.data = x.data();
  TensorMap map;
  const auto bytes = static_cast<int>(box_elements * 4);
  std::vector<float> out(static_cast<size_t>(box_elements), -1.0f);
  auto* const raw = reinterpret_cast<unsigned char*>(out.data());
  bool right =
      bool(make_tensor_map(view, &map)) && bool(launch(load<kRank>, {.block = dim3(32), .shared_bytes = bytes + 8},
                                                       nullptr, map, int4{at[0], at[1], at[2], 0}, int2{}, raw, bytes));
  for (int64_t i = 0; i < box_elements; ++i) {
    int64_t rest = i, offset = 0;
    bool inside = true;
    for (int d = 0; d < kRank; ++d) {
      const int64_t position = at[d] + rest % box[d];
      rest /= box[d];
      inside = inside && position >= 0 && position < size[d];
      offset += position * view.stride[d];
    }
    const size_t place = swizzle ? swizzled(static_cast<size_t>(i) * 4) / 4 : static_cast<size_t>(i);
    right = right && out[place] == (inside ? static_cast<float>(offset) + 1 : 0.0f);
  }
  return right;
}

// Each tap of a convolution, from pixel `first` of the output, against the definition.
bool im2col_is_right(int stride, int dilation, int pad, int first, bool swizzle) {
  const int n = 3, h = 6, w = 7, c = swizzle ? 64 : 24, taps = 3, pixels = 32, channels = swizzle ? 64 : 16;
  const int reach = dilation * (taps - 1) + 1, p = (h + 2 * pad - reach) / stride + 1,
            q = (w + 2 * pad - reach) / stride + 1;
  simt::Guarded<f16> x(static_cast<size_t>(n * h * w * c));
  for (size_t i = 0; i < x.size(); ++i) x[i].bits = static_cast<uint16_t>(i + 1);
  TensorMap map;
  Im2colView view = {.data = x.data(), .dtype = DType::f16};
  view.n = n, view.h = h, view.w = w, view.c = c;
  view.stride_n = h * w * c, view.stride_h = w * c, view.stride_w = c;
  view.p = p, view.q = q, view.pad_top = view.pad_left = pad, view.step_h = view.step_w = stride;
  view.pixels = pixels, view.channels = channels;
  view.swizzle = swizzle ? Swizzle::b128 : Swizzle::none;
  bool right = bool(make_tensor_map(view, &map));
  const int from = swizzle ? 0 : 8;  // a tail of channels, or all
  for (int r = 0; r < taps; ++r) {
    for (int s = 0; s < taps; ++s) {
      std::vector<f16> out(static_cast<size_t>(pixels * channels));
      const int bytes = pixels * channels * 2;
      const int4 at = {from, first % q * stride - pad, first / q % p * stride - pad, first / q / p};
      right =
          right && bool(launch(load<4>, {.block = dim3(32), .shared_bytes = bytes + 8}, nullptr, map, at,
                               int2{s * dilation, r * dilation}, reinterpret_cast<unsigned char*>(out.data()), bytes));
      for (int i = 0; i < pixels; ++i) {
        const int pixel = first + i, image = pixel / q / p;
        const int y = pixel / q % p * stride - pad + r * dilation, z = pixel % q * stride - pad + s * dilation;
        for (int j = 0; j < channels; ++j) {
          const bool inside = image < n && y >= 0 && y < h && z >= 0 && z < w && from + j < c;
          const uint16_t expected =
              inside ? static_cast<uint16_t>(((image * h + y) * w + z) * c + from + j + 1) : uint16_t{0};
          const size_t dense = static_cast<size_t>(i * channels + j);
          right = right && out[swizzle ? swizzled(dense * 2) / 2 : dense].bits == expected;
        }
      }
    }
  }
  return right;
}

// ---- Clusters ----

// Each block of a cluster of 4 passes numbers to the next, round by round, by st.async; block 0's box goes to all by
// multicast.
template <Fault kFault>
__global__ void ring(const __grid_constant__ TensorMap map, uint32_t* out) {
  constexpr uint32_t kBlocks = 4;
  struct Shared {
    alignas(128) uint32_t box[32];
    alignas(16) uint32_t inbox[2][32];
    uint64_t full[2], empty[2], box_full;
  };
  Shared* const s = dynamic_shared<Shared>();
  const uint32_t rank = ptx::cluster_rank(), next = (rank + 1) % kBlocks, last = (rank + kBlocks - 1) % kBlocks,
                 i = threadIdx.x;
  if (i == 0) {
    for (int b = 0; b < 2; ++b) {
      ptx::mbarrier_init(&s->full[b], 1);
      ptx::mbarrier_init(&s->empty[b], 32);
    }
    ptx::mbarrier_init(&s->box_full, 1);
    ptx::fence_mbarrier_init();
  }
  if (kFault != Fault::no_barrier) {
    ptx::cluster_arrive();
    ptx::cluster_wait();
  } else {
    __syncthreads();
  }
  if (i == 0) {
    ptx::mbarrier_arrive_expect_tx(&s->box_full, 128);
    if (rank == 0) {
      ptx::tma_load_2d_multicast(s->box, &map, &s->box_full, 0, 0, static_cast<uint16_t>((1u << kBlocks) - 1));
    }
  }
  uint32_t held = rank * 32 + i;
  for (int round = 0; round < 5; ++round) {
    const int b = round % 2;
    if (i == 0) ptx::mbarrier_arrive_expect_tx(&s->full[b], 32 * 4);
    // The next block's buffer is free: it told us so by its arrivals here.
    if (round >= 2 && kFault != Fault::no_empty_wait) {
      ptx::mbarrier_wait_cluster(&s->empty[b], static_cast<uint32_t>(round / 2 - 1) & 1);
    }
    // Of a quadruple of lanes the first one sends.
    const auto of_lane = [&](uint32_t lane) { return __shfl_sync(0xffffffff, held, static_cast<int>(lane % 32)); };
    const uint32_t v1 = of_lane(i + 1), v2 = of_lane(i + 2), v3 = of_lane(i + 3);
    if (i % 4 == 0) {
      ptx::st_async_16(ptx::cluster_address(&s->inbox[b][i], next), uint4{held, v1, v2, v3},
                       ptx::cluster_address(&s->full[b], next));
    }
    if (kFault != Fault::no_full_wait) ptx::mbarrier_wait_cluster(&s->full[b], static_cast<uint32_t>(round / 2) & 1);
    held = s->inbox[b][i] + 1;
    ptx::mbarrier_arrive_cluster_read(ptx::cluster_address(&s->empty[b], last));
  }
  ptx::mbarrier_wait(&s->box_full, 0);
  uint32_t* const mine = out + (blockIdx.x * 32 + i) * 2;
  mine[0] = held;
  mine[1] = s->box[i];
  ptx::cluster_arrive();
  ptx::cluster_wait();
}

template <Fault kFault>
bool ring_is_right() {
  std::vector<int32_t> x(32);
  for (int i = 0; i < 32; ++i) x[static_cast<size_t>(i)] = 7 * i;
  std::vector<uint32_t> out(2 * 4 * 32 * 2);
  TensorMap map;
  bool right = bool(make_tensor_map(matrix_view(x.data(), DType::i32, 1, 32, 32, 1, 32, Swizzle::none), &map)) &&
               bool(launch(ring<kFault>, {.grid = dim3(8), .block = dim3(32), .shared_bytes = 1024, .cluster = 4},
                           nullptr, map, out.data()));
  for (uint32_t block = 0; block < 8; ++block) {
    for (uint32_t i = 0; i < 32; ++i) {
      const uint32_t last = (block % 4 + 3) % 4, *const mine = &out[(block * 32 + i) * 2];
      right = right && mine[0] == last * 32 + i + 5 && mine[1] == 7 * i;  // 5 rounds backwards is one
    }
  }
  return right;
}

// ---- The rest ----

// cp.async into wgmma's operands, which takes a proxy fence: there is none.
__global__ void copied_operands(const f16* a, const f16* b, float* d) {
  unsigned char* const shared = dynamic_shared<unsigned char>();
  for (int i = static_cast<int>(threadIdx.x); i < (64 + 8) * 8; i += 128) {
    const int row = i / 8, chunk = i % 8;
    const f16* const from = row < 64 ? a + row * 64 : b + (row - 64) * 64;
    ptx::cp_async_16(shared + row * 128 + (chunk ^ row % 8) * 16, from + chunk * 8);
  }
  ptx::cp_async_commit();
  ptx::cp_async_wait<0>();
  __syncthreads();
  float sum[4];
  ptx::wgmma_fence();
  for (int j = 0; j < 4; ++j) {
    ptx::wgmma_f16(sum, ptx::wgmma_descriptor(shared + 32 * j), ptx::wgmma_descriptor(shared + 64 * 128 + 32 * j),
                   j > 0);
  }
  ptx::wgmma_commit();
  ptx::wgmma_wait<0>(sum);
  const int lane = static_cast<int>(threadIdx.x % 32), warp = static_cast<int>(threadIdx.x / 32);
  for (int i = 0; i < 4; ++i) d[(warp * 16 + lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2] = sum[i];
}

bool copied_operands_are_right() {
  const auto a = operand<f16>(64 * 64, 5), b = operand<f16>(8 * 64, 6);
  std::vector<float> d(64 * 8);
  const bool right = bool(
      launch(copied_operands, {.block = dim3(128), .shared_bytes = 72 * 128}, nullptr, a.data(), b.data(), d.data()));
  return right && near(d, product_of(a, b, 64, 8, 64, 0, 64), 64);
}

void test_tensor_maps() {
  alignas(16) static float x[64];
  TensorMap map;
  const auto made = [&](const TiledView& view) { return bool(make_tensor_map(view, &map)); };
  EXPECT(made(matrix_view(x, DType::f32, 2, 32, 32, 2, 32)));
  EXPECT(!made(matrix_view(x + 1, DType::f32, 2, 28, 28, 2, 32)));  // the address
  EXPECT(!made(matrix_view(x, DType::f32, 2, 30, 30, 2, 32)));      // the stride
  EXPECT(!made(matrix_view(x, DType::f32, 2, 32, 32, 257, 32)));    // the box
  EXPECT(!made(matrix_view(x, DType::f32, 2, 32, 32, 2, 16)));      // the swizzle's 128 bytes
  EXPECT(made(matrix_view(x, DType::f32, 2, 32, 32, 2, 16, Swizzle::none)));
  EXPECT(!made(matrix_view(x, DType::f32, 2, 32, 32, 2, 6, Swizzle::none)));
  EXPECT(!made(matrix_view(x, DType::f32, 0, 32, 32, 2, 32)));
  EXPECT(!made(matrix_view(x, DType::f32, 2, 32, int64_t{1} << 60, 2, 32)));
  Im2colView view = {.data = x, .dtype = DType::f16};
  view.n = view.h = 1, view.w = 2, view.c = 64;
  view.stride_n = view.stride_h = 128, view.stride_w = 64;
  view.p = 1, view.q = 2, view.pixels = 8, view.channels = 64;
  EXPECT(bool(make_tensor_map(view, &map)));
  view.pad_left = 129;
  EXPECT(!bool(make_tensor_map(view, &map)));
  view.pad_left = 0;
  view.step_h = 9;
  EXPECT(!bool(make_tensor_map(view, &map)));
  view.step_h = 1;
  view.q = 200;
  EXPECT(!bool(make_tensor_map(view, &map)));
}

}  // namespace

int main() {
  test_tensor_maps();

  EXPECT((catches(pipeline_is_right<f16, 16, Fault::none>) == 0));
  EXPECT((catches(pipeline_is_right<bf16, 8, Fault::none>) == 0));
  EXPECT((catches(pipeline_is_right<int8_t, 32, Fault::none>) == 0));
  EXPECT((catches(pipeline_is_right<f16, 64, Fault::none>, 1) == 0));
  EXPECT((catches(pipeline_is_right<bf16, 128, Fault::none>, 1) == 0));
  EXPECT((catches(pipeline_is_right<int8_t, 256, Fault::none>, 1) == 0));
  EXPECT((catches(pipeline_is_right<f16, 16, Fault::no_full_wait>) > 0));
  EXPECT((catches(pipeline_is_right<f16, 16, Fault::no_empty_wait>) > 0));
  EXPECT((catches(pipeline_is_right<f16, 16, Fault::no_wgmma_wait>) > 0));
  EXPECT((catches(pipeline_is_right<f16, 16, Fault::wrong_parity>) > 0));
  const int all = static_cast<int>(simt::schedules().size());
  EXPECT((catches(pipeline_is_right<f16, 16, Fault::swapped_lane>) == all));
  EXPECT((catches(pipeline_is_right<f16, 16, Fault::wrong_swizzle>) == all));
  EXPECT((catches(pipeline_is_right<f16, 16, Fault::too_few_bytes>) == all));
  EXPECT((contains(first_error(pipeline_is_right<f16, 16, Fault::too_few_bytes>), "deadlock")));
  EXPECT((contains(first_error(pipeline_is_right<f16, 16, Fault::too_few_bytes>), "an mbarrier")));
  EXPECT((contains(first_error(pipeline_is_right<f16, 16, Fault::too_many_arrivals>), "more threads arrived")));
  EXPECT((contains(first_error(pipeline_is_right<f16, 16, Fault::no_init>), "not initialised")));
  EXPECT((contains(first_error(pipeline_is_right<f16, 16, Fault::no_wgmma_fence>), "wgmma_fence")));

  EXPECT(catches([] { return tile_is_right<2>(false); }) == 0);
  EXPECT(catches([] { return tile_is_right<2>(true); }) == 0);
  EXPECT(catches([] { return tile_is_right<3>(false); }) == 0);
  EXPECT(catches([] { return tile_is_right<3>(true); }) == 0);
  for (const bool swizzle : {false, true}) {
    EXPECT(catches([=] { return im2col_is_right(1, 1, 1, 0, swizzle); }) == 0);
    EXPECT(catches([=] { return im2col_is_right(1, 1, 1, 37, swizzle); }) == 0);
    EXPECT(catches([=] { return im2col_is_right(2, 1, 1, 5, swizzle); }) == 0);
    EXPECT(catches([=] { return im2col_is_right(1, 2, 2, 40, swizzle); }) == 0);
    EXPECT(catches([=] { return im2col_is_right(3, 1, 0, 3, swizzle); }) == 0);
  }

  EXPECT(catches(ring_is_right<Fault::none>) == 0);
  EXPECT(catches(ring_is_right<Fault::no_barrier>) > 0);
  EXPECT(catches(ring_is_right<Fault::no_full_wait>) > 0);
  EXPECT(catches(ring_is_right<Fault::no_empty_wait>) > 0);

  EXPECT(catches(copied_operands_are_right) == all);
  return pk::test::finish();
}
