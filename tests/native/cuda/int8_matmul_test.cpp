// The CUDA int8 kernels, run by the SIMT harness, against the plain loops and shapes of the CPU test; every algorithm
// and split by force, and what is chosen where nobody forces.
#include "pykernels/cuda/int8_matmul.h"

#include <array>
#include <cstring>
#include <limits>

#include "cuda/int8_matmul/choose.h"
#include "cuda/on_device.h"
#include "int8_matmul_reference.h"

using namespace pk;
using cuda::Int8Algorithm;
using cuda::Int8Choice;
using simt::Guarded;
using test::OnDevice;
using test::run_planned;
using test::succeeded;

namespace {

void run(const Int8MatmulArgs& p, Int8Choice choice = {}) {
  cuda::Int8MatmulPlan plan;
  succeeded(cuda::make_plan({p, choice}, &plan), "make_plan");
  run_planned(plan);
}

Guarded<char> pack(const int8_t* b, int64_t k, int64_t n, int64_t stride_k, int64_t stride_n) {
  cuda::Int8PackingPlan plan;
  succeeded(cuda::make_packing_plan(k, n, &plan), "make_packing_plan");
  Guarded<char> packed(static_cast<size_t>(plan.packed_bytes));
  succeeded(cuda::pack(plan, b, stride_k, stride_n, packed.data(), nullptr), "pack");
  return packed;
}

// How a and b lie in memory. offset: rows of K, further apart than they are long, from an odd address. repeated: one
// row stands for all (expand).
enum class Layout { rows_of_k, turned, offset, packed, repeated };

struct Strides {
  int64_t row, k, first;
  size_t elements;
};
Strides strides_of(Layout layout, int64_t rows, int64_t k) {
  if (layout == Layout::turned) return {1, rows, 0, static_cast<size_t>(rows * k)};
  if (layout == Layout::offset) return {k + 3, 1, 1, static_cast<size_t>(rows * (k + 3) + 1)};
  if (layout == Layout::repeated) return {0, 1, 0, static_cast<size_t>(k)};
  return {k, 1, 0, static_cast<size_t>(rows * k)};
}

void matmul_case(int64_t m, int64_t n, int64_t k, bool extremes, bool zero_point, Layout a_layout, Layout b_layout,
                 Int8Choice plan = {}) {
  const Strides as = strides_of(a_layout, m, k), bs = strides_of(b_layout, n, k);
  const Guarded<int8_t> a(test::random_bytes(as.elements, 1, extremes)),
      b(test::random_bytes(bs.elements, 2, extremes));
  const Guarded<int32_t> zero(test::zero_points(m));
  Guarded<int32_t> out(static_cast<size_t>(m * n));
  Int8MatmulArgs p;
  p.m = m, p.n = n, p.k = k, p.a = a.data() + as.first, p.a_stride_m = as.row, p.a_stride_k = as.k;
  p.b = b.data() + bs.first, p.b_stride_k = bs.k, p.b_stride_n = bs.row, p.out = out.data();
  if (zero_point) p.a_zero_point = zero.data(), p.a_zero_point_stride = 1;
  const Guarded<char> packed = b_layout == Layout::packed ? pack(p.b, k, n, bs.k, bs.row) : Guarded<char>(0);
  if (b_layout == Layout::packed) {
    p.packed = packed.data(), p.packed_bytes = static_cast<int64_t>(packed.size()), p.b = nullptr;
  }
  run(p, plan);
  const int64_t wrong = test::wrong_sums(p, b.data() + bs.first);
  EXPECT(wrong == 0, "%ld of %ld wrong: m %ld n %ld k %ld extremes %d zero_point %d a %d b %d algorithm %d split %d",
         wrong, m * n, m, n, k, extremes, zero_point, static_cast<int>(a_layout), static_cast<int>(b_layout),
         static_cast<int>(plan.algorithm), plan.split);
}

// Scales (of rows and columns, or of tensors), bias, zero points and each output type, on powers of two: exact in
// float.
void epilogue_case(DType out_dtype, int64_t m, int64_t n, bool vectors, bool bias, Activation activation,
                   Int8Choice plan) {
  const int64_t k = 48;
  const Guarded<int8_t> a(test::random_bytes(static_cast<size_t>(m * k), 3, false));
  const Guarded<int8_t> b(test::random_bytes(static_cast<size_t>(n * k), 4, false));
  Guarded<float> as(vectors ? static_cast<size_t>(m) : 1), bs(vectors ? static_cast<size_t>(n) : 1);
  Guarded<float> added(static_cast<size_t>(n));
  for (size_t i = 0; i < as.size(); ++i) as[i] = std::ldexp(1.0f, -static_cast<int>(i % 3));
  for (size_t j = 0; j < bs.size(); ++j) bs[j] = std::ldexp(1.0f, -4 - static_cast<int>(j % 5));
  for (size_t j = 0; j < added.size(); ++j) added[j] = 0.25f * static_cast<float>(j % 32) - 3;
  const Guarded<int32_t> zero(std::vector<int32_t>{5});
  OnDevice out(out_dtype, static_cast<size_t>(m * n));
  Int8MatmulArgs p;
  p.m = m, p.n = n, p.k = k, p.a = a.data(), p.a_stride_m = k, p.a_stride_k = 1;
  p.b = b.data(), p.b_stride_k = 1, p.b_stride_n = k, p.out = out.data(), p.out_dtype = out_dtype;
  p.a_scale = as.data(), p.a_scale_stride = vectors, p.b_scale = bs.data(), p.b_scale_stride = vectors;
  p.a_zero_point = zero.data(), p.activation = activation;
  if (bias) p.bias = added.data();
  run(p, plan);
  for (size_t i = 0; i < static_cast<size_t>(m); ++i) {
    for (size_t j = 0; j < static_cast<size_t>(n); ++j) {
      const int64_t sum = test::int8_sum(a.data() + i * k, 1, b.data() + j * k, 1, k, zero[0]);
      float y = static_cast<float>(sum) * as[vectors ? i : 0] * bs[vectors ? j : 0] + (bias ? added[j] : 0.0f);
      if (activation == Activation::relu) y = std::fmax(0.0f, y);
      if (activation == Activation::leaky_relu && y < 0) y *= 0.01f;
      const float got = out[i * static_cast<size_t>(n) + j];
      const float expected = out_dtype == DType::i8 ? test::rounded_to_int8(y, -128.0f) : y;
      const float close = out_dtype == DType::bf16  ? std::fabs(y) / 256
                          : out_dtype == DType::f16 ? std::fabs(y) / 2048
                                                    : std::fabs(y) * 2e-7f * (activation == Activation::leaky_relu);
      EXPECT(std::fabs(got - expected) <= close, "output type %d, algorithm %d: %g for %g", static_cast<int>(out_dtype),
             static_cast<int>(plan.algorithm), got, expected);
    }
  }
}

// A float a: as quantising its rows first. stride: of its rows.
void dynamic_case(DType dtype, int64_t m, int64_t n, int64_t k, int64_t stride, Int8Choice plan = {}) {
  OnDevice x(dtype, test::normal(static_cast<size_t>((m - 1) * stride + k), 5));
  std::vector<float> rows(static_cast<size_t>(m * k));
  for (int64_t i = 0; i < m * k; ++i) rows[static_cast<size_t>(i)] = x[static_cast<size_t>(i / k * stride + i % k)];
  const test::Quantized q = test::quantize_reference(rows, m, k, true);
  const Guarded<int8_t> b(test::random_bytes(static_cast<size_t>(n * k), 6, false));
  const Guarded<float> bs(std::vector<float>(static_cast<size_t>(n), 0.01f));
  Guarded<float> out(static_cast<size_t>(m * n));
  Int8MatmulArgs p;
  p.m = m, p.n = n, p.k = k, p.a = x.data(), p.a_dtype = dtype, p.a_stride_m = stride, p.a_stride_k = 1;
  p.b = b.data(), p.b_stride_k = n, p.b_stride_n = 1, p.b_scale = bs.data(), p.b_scale_stride = 1;
  p.out_dtype = DType::f32, p.out = out.data();
  run(p, plan);
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t j = 0; j < n; ++j) {
      float sum = 0;  // exact: less than 2^24
      for (int64_t c = 0; c < k; ++c) sum += q.q[static_cast<size_t>(i * k + c)] * b[static_cast<size_t>(c * n + j)];
      const float expected = sum * (0.01f * q.scale[static_cast<size_t>(i)]);
      const float got = out[static_cast<size_t>(i * n + j)];
      EXPECT(got == expected, "m %ld n %ld k %ld: %g for %g", m, n, k, got, expected);
    }
  }
}

void quantize_case(DType dtype, int64_t outer, int64_t channels, int64_t inner, bool symmetric, bool special = false) {
  const auto total = static_cast<size_t>(outer * channels * inner), c = static_cast<size_t>(channels);
  auto x = test::normal(total, 7, 3.0f);
  for (size_t i = 0; i < total; ++i) {
    const size_t channel = i / static_cast<size_t>(inner) % c;
    if (channel == 1) x[i] = 0;
    if (special && channel == 2 && i % 7 == 3) x[i] = NAN;
    if (special && channel == 3 && i % 5 == 3) x[i] = -std::numeric_limits<float>::infinity();
    if (special && channel == 4) x[i] = std::numeric_limits<float>::infinity();
    if (special && channel == 5) x[i] *= 1e-41f;
  }
  OnDevice given(dtype, x);
  Guarded<int8_t> q(total);
  Guarded<float> scale(c);
  Guarded<int32_t> zero(c);
  QuantizeInt8Args p;
  p.x_dtype = dtype, p.x = given.data(), p.outer = outer, p.channels = channels, p.inner = inner;
  p.symmetric = symmetric, p.q = q.data(), p.scale = scale.data(), p.zero_point = zero.data();
  cuda::QuantizeInt8Plan plan;
  succeeded(cuda::make_plan(p, &plan), "make_plan");
  run_planned(plan);
  const std::vector<float> seen = given.floats();
  test::expect_quantized(test::quantize_reference(seen, channels, inner, symmetric), seen, q, scale, zero);
}

constexpr Int8Choice kForced[] = {{Int8Algorithm::tile_64x64, 1},   {Int8Algorithm::tile_64x64, 3},
                                  {Int8Algorithm::tile_128x128, 1}, {Int8Algorithm::tile_128x128, 2},
                                  {Int8Algorithm::tile_128x256, 1}, {Int8Algorithm::tile_128x256, 2}};
constexpr Int8Choice kHopper[] = {{Int8Algorithm::hopper_128x256, 1}, {Int8Algorithm::hopper_128x256, 2},
                                  {Int8Algorithm::hopper_128x128, 1}, {Int8Algorithm::hopper_128x128, 3},
                                  {Int8Algorithm::hopper_swapped, 1}, {Int8Algorithm::hopper_swapped, 4}};
constexpr Int8Choice kSkinny[] = {{Int8Algorithm::skinny, 1}, {Int8Algorithm::skinny, 3}};

// Every algorithm under every schedule. Small: what a schedule can break shows in a few blocks.
void hopper_schedules() {
  for (const auto& schedule : simt::schedules()) {
    const simt::Use use(schedule);
    for (const Int8Choice& plan : kHopper) {
      const bool swapped = plan.algorithm == Int8Algorithm::hopper_swapped;
      matmul_case(swapped ? 37 : 133, swapped ? 133 : 70, 640, true, true, Layout::rows_of_k, Layout::packed, plan);
    }
  }
}

// More tiles than multiprocessors, so that blocks stay for several; tails on every side; every epilogue.
void hopper() {
  const int multiprocessors = simt::device().multiprocessors;
  simt::device().multiprocessors = 4;
  for (const Int8Choice& plan : kHopper) {
    const bool swapped = plan.algorithm == Int8Algorithm::hopper_swapped;
    matmul_case(swapped ? 64 : 261, swapped ? 261 : 530, 272, false, true, Layout::rows_of_k, Layout::rows_of_k, plan);
    matmul_case(swapped ? 3 : 5, 7, 48, false, false, Layout::repeated, Layout::repeated, plan);
    matmul_case(swapped ? 1 : 3, 5, 0, false, false, Layout::rows_of_k, Layout::rows_of_k, plan);
    matmul_case(swapped ? 3 : 129, 257, 33, true, false, Layout::turned, Layout::turned, plan);
    for (const DType t : {DType::f32, DType::bf16, DType::f16, DType::i8}) {
      epilogue_case(t, 21, 44, true, true, Activation::relu, plan);
      epilogue_case(t, 21, 45, false, true, Activation::leaky_relu, plan);
    }
  }
  simt::device().multiprocessors = multiprocessors;
  matmul_case(300, 600, 528, true, true, Layout::rows_of_k, Layout::packed);
  matmul_case(40, 600, 2100, true, true, Layout::rows_of_k, Layout::packed);
  dynamic_case(DType::f16, 70, 140, 300, 300);
}

void schedules() {
  for (const auto& schedule : simt::schedules()) {
    const simt::Use use(schedule);
    for (const Int8Choice& plan : kForced) {
      matmul_case(69, 70, 336, true, false, Layout::rows_of_k, Layout::rows_of_k, plan);
    }
    for (const Int8Choice& plan : kSkinny) {
      matmul_case(5, 37, 1360, true, true, Layout::rows_of_k, Layout::packed, plan);
      matmul_case(13, 33, 848, false, false, Layout::rows_of_k, Layout::packed, plan);
    }
    matmul_case(1, 13, 5200, true, true, Layout::rows_of_k, Layout::packed, {Int8Algorithm::gemv, 0});
    matmul_case(9, 133, 70, false, true, Layout::turned, Layout::turned);
    epilogue_case(DType::f16, 19, 21, true, true, Activation::relu, {});
    dynamic_case(DType::f32, 3, 33, 600, 604);
    dynamic_case(DType::bf16, 9, 17, 50, 51);
    for (const auto& s : {std::array<int64_t, 3>{1, 1, 5003}, {3, 4, 19}, {37, 41, 1}, {1, 3, 2100}}) {
      quantize_case(DType::f32, s[0], s[1], s[2], false);
    }
  }
}

void shapes() {
  for (const auto& s : test::kInt8Sizes) {
    const int64_t m = s[0], n = s[1], k = s[2];
    matmul_case(m, n, k, true, true, Layout::rows_of_k, Layout::packed);
    matmul_case(m, n, k, false, true, Layout::turned, Layout::turned);
    matmul_case(m, n, k, false, false, Layout::offset, Layout::offset);
    if (m * n * k > 1000000) continue;
    matmul_case(m, n, k, true, false, Layout::rows_of_k, Layout::turned);
    matmul_case(m, n, k, false, true, Layout::rows_of_k, Layout::rows_of_k);
    for (const Int8Choice& plan : kForced) matmul_case(m, n, k, true, true, Layout::rows_of_k, Layout::packed, plan);
    if (m > 16) continue;
    for (const Int8Choice& plan : kSkinny) matmul_case(m, n, k, true, true, Layout::rows_of_k, Layout::packed, plan);
  }
  // Operands in place, of several tiles.
  matmul_case(140, 270, 64, false, false, Layout::rows_of_k, Layout::rows_of_k, {Int8Algorithm::tile_128x256, 1});
  matmul_case(70, 130, 192, true, true, Layout::rows_of_k, Layout::rows_of_k, {Int8Algorithm::tile_64x64, 2});
  matmul_case(16, 100, 256, true, true, Layout::rows_of_k, Layout::rows_of_k);
  matmul_case(1, 100, 2064, true, true, Layout::rows_of_k, Layout::rows_of_k);
  // What gemv loads ahead ends with the rows.
  matmul_case(1, 5, 4112, false, false, Layout::rows_of_k, Layout::rows_of_k);
}

void epilogues() {
  for (const DType t : {DType::f32, DType::bf16, DType::f16, DType::i8}) {
    for (const Int8Choice& plan : {Int8Choice{}, kForced[0], kForced[1], kForced[4]}) {
      epilogue_case(t, 21, 44, true, true, Activation::relu, plan);  // whole vectors
      epilogue_case(t, 21, 45, true, false, Activation::none, plan);
    }
    for (const int64_t m : {1, 7, 12}) {
      epilogue_case(t, m, 44, true, true, Activation::none, {});
      epilogue_case(t, m, 37, false, true, Activation::leaky_relu, {});
    }
  }
}

void quantisation() {
  for (const DType t : {DType::f32, DType::bf16, DType::f16}) {
    for (const bool symmetric : {true, false}) {
      for (const auto& s : test::kQuantizeSizes) quantize_case(t, s[0], s[1], s[2], symmetric);
      quantize_case(t, 1, 6, 40, symmetric, true);
      quantize_case(t, 3, 6, 16, symmetric, true);
      quantize_case(t, 20, 6, 1, symmetric, true);
      quantize_case(t, 1, 2, 2200, symmetric);
      quantize_case(t, 2, 3, 2064, symmetric);
      quantize_case(t, 0, 4, 5, symmetric);
      quantize_case(t, 2, 4, 0, symmetric);
      quantize_case(t, 1, 0, 5, symmetric);
    }
    dynamic_case(t, 1, 40, 700, 700);
    dynamic_case(t, 9, 33, 21, 24);
    dynamic_case(t, 2, 3, 0, 0);
    dynamic_case(t, 40, 60, 130, 130);
    dynamic_case(t, 2, 5, 4300, 4304);  // more than a block keeps in registers
  }
}

void limits() {
  // All -128 at the longest k: the sum is 2^31 - 2^14, and with a zero point of 127 it is 65793 * 255 * 128.
  const Guarded<int8_t> v(std::vector<int8_t>(kInt8MaxK, -128));
  const Guarded<int32_t> zero(std::vector<int32_t>{127});
  Guarded<int32_t> out(1);
  Int8MatmulArgs p;
  p.m = 1, p.n = 1, p.a = v.data(), p.a_stride_k = 1, p.b = v.data(), p.b_stride_k = 1, p.b_stride_n = 1;
  p.out = out.data();
  for (const auto algorithm : {Int8Algorithm::gemv, Int8Algorithm::skinny, Int8Algorithm::tile_64x64}) {
    p.k = kInt8MaxK, p.a_stride_m = p.k, p.a_zero_point = nullptr;
    run(p, {algorithm, 0});
    EXPECT(out[0] == static_cast<int64_t>(kInt8MaxK) << 14, "%d", out[0]);
    p.k = kInt8MaxKWithZeroPoint, p.a_stride_m = p.k, p.a_zero_point = zero.data();
    run(p, {algorithm, 0});
    EXPECT(out[0] == kInt8MaxKWithZeroPoint * 255 * 128, "%d", out[0]);
  }
}

void refusals() {
  Guarded<int8_t> v(std::vector<int8_t>(64, 1));
  Guarded<int32_t> out(64);
  const Guarded<char> packed = pack(v.data(), 8, 8, 8, 1);
  Int8MatmulArgs good;
  good.m = 8, good.n = 8, good.k = 8, good.a = v.data(), good.a_stride_m = 8, good.a_stride_k = 1;
  good.packed = packed.data(), good.packed_bytes = static_cast<int64_t>(packed.size()), good.out = out.data();
  cuda::Int8MatmulPlan plan;
  const auto refuses = [&](const Int8MatmulArgs& p, const char* word, Int8Choice choice = {}) {
    const Status s = cuda::make_plan({p, choice}, &plan);
    EXPECT(!s && std::strstr(s.error, word) != nullptr, "expected '%s', got '%s'", word, s ? "success" : s.error);
  };
  EXPECT(cuda::make_plan({good, {}}, &plan), "the good one");
  Int8MatmulArgs p = good;
  p.k = kInt8MaxK + 1, p.packed = nullptr;
  refuses(p, "131071");
  // The size of a packed weight tells k to the element, where n is known.
  p = good, p.k = 7;
  refuses(p, "packed");
  p = good, p.n = 9;
  refuses(p, "packed");
  p = good, p.packed = packed.data() + 1;
  refuses(p, "multiple of 16");
  p = good, p.activation = Activation::relu;
  refuses(p, "plain sum");
  p = good, p.a_dtype = DType::i32;
  refuses(p, "expected int8");
  p = good, p.a_dtype = DType::f16, p.out_dtype = DType::f16, p.a_stride_k = 2;
  refuses(p, "contiguous rows");
  refuses(good, "single row", {Int8Algorithm::gemv, 0});
  p = good, p.m = 17;
  refuses(p, "16 rows", {Int8Algorithm::skinny, 0});
  refuses(good, "split", {Int8Algorithm::tile_64x64, 17});
  refuses(good, "Hopper", {Int8Algorithm::hopper_128x128, 0});
  cuda::Int8PackingPlan packing;
  for (const int64_t size : {int64_t{1} << 61, INT64_MAX, kInt8MaxN + 1}) {
    EXPECT(!cuda::make_packing_plan(4, size, &packing), "%lld columns", static_cast<long long>(size));
    EXPECT(!cuda::make_packing_plan(0, size, &packing), "%lld columns of nothing", static_cast<long long>(size));
    p = good, p.n = size;
    refuses(p, "2^36 columns");
    p = good, p.m = size;
    refuses(p, "too large");
    QuantizeInt8Args q;
    q.outer = size, q.channels = int64_t{1} << 21, q.inner = 0;
    cuda::QuantizeInt8Plan quantizing;
    EXPECT(!cuda::make_plan(q, &quantizing), "quantises %lld slices", static_cast<long long>(size));
  }
  EXPECT(!cuda::make_packing_plan(-1, 4, &packing) && !cuda::make_packing_plan(4, -1, &packing), "negative");
}

void choices() {
  for (const cuda::Device& device : {cuda::Device(), test::kH100}) {
    const bool hopper = device.capability == 90;
    const auto chosen = [&](int64_t m, int64_t n, int64_t k) { return cuda::int8::choose(m, n, k, device); };
    EXPECT(chosen(1, 4096, 4096).algorithm == Int8Algorithm::gemv, "one row");
    EXPECT(chosen(2, 4096, 4096).algorithm == Int8Algorithm::skinny, "two rows");
    EXPECT(chosen(16, 4096, 4096).algorithm == Int8Algorithm::skinny, "16 rows");
    EXPECT(chosen(16, 4096, 4096).split == 1, "enough columns need no split");
    EXPECT(chosen(16, 256, 16384).split > 1, "few columns and a long K do");
    EXPECT(chosen(8192, 8192, 8192).algorithm == (hopper ? Int8Algorithm::hopper_128x256 : Int8Algorithm::tile_128x256),
           "large");
    EXPECT(chosen(8192, 8192, 8192).split == 1, "large products are not split");
    EXPECT(chosen(64, 4096, 8192).split > 1, "few tiles are split");
    EXPECT(!hopper || chosen(64, 4096, 8192).algorithm == Int8Algorithm::hopper_swapped, "a short a is swapped");
    EXPECT(chosen(257, 64, 131071).split == 1, "nor any of more than 256 rows");
    EXPECT(chosen(40, 40, 40).algorithm == Int8Algorithm::tile_64x64 && chosen(40, 40, 40).split == 1, "small");
    for (int64_t m = 1; m <= 8192; m *= 2) {
      const Int8Choice plan = chosen(m, 4096, 4096), forced = cuda::int8::choose(m, 4096, 4096, device, plan);
      EXPECT(plan.split >= 1 && plan.split <= cuda::int8::kMaxSplit, "m %ld: split %d", m, plan.split);
      EXPECT(forced.algorithm == plan.algorithm && forced.split == plan.split, "m %ld: a plan completes to itself", m);
      std::printf("capability %d, %ld x 4096 x 4096: algorithm %d, split %d\n", device.capability, m,
                  static_cast<int>(plan.algorithm), plan.split);
    }
    const int warps = cuda::int8::gemv_warps_along_k(4096, 4096, device.multiprocessors);
    EXPECT(warps == 4 || warps == 8, "%d warps share K", warps);
    EXPECT(cuda::int8::gemv_warps_along_k(1 << 20, 4096, device.multiprocessors) == 1,
           "a block's warps take rows of their own");
    EXPECT(cuda::int8::gemv_warps_along_k(64, 300, device.multiprocessors) == 1, "a short K is not shared");
  }
  // No slice of wgmma may be empty: 5 k tiles of 128 in 4 slices are 2, 2 and 1.
  EXPECT(cuda::int8::choose(64, 128, 600, test::kH100, {Int8Algorithm::hopper_swapped, 4}).split == 3, "empty slices");
  cuda::Device later;
  later.capability = 100;
  EXPECT(!cuda::int8::is_hopper(cuda::int8::choose(8192, 8192, 8192, later).algorithm), "wgmma is of 9.0 alone");
}

}  // namespace

// The shapes are many and add no way to race: watched for races, one of each kind runs.
int main() {
  choices();
  refusals();
  schedules();
  {
    const simt::Use use(simt::schedules()[1]);
    if (test::kThorough) {
      shapes();
      epilogues();
      limits();
    }
    quantisation();
  }
  simt::device() = test::kH100;
  hopper_schedules();
  const simt::Use use(simt::schedules()[1]);
  if (test::kThorough) hopper();
  return test::finish();
}
