// The int8 kernels against plain loops: every ISA of the host, and as plain code the two 64-byte forms: with dot4
// (wide512, what avx512_vnni compiles) and with dot2 (wide512_pairs, what avx512 compiles).
#include "pykernels/int8_matmul.h"

#include <cstring>
#include <limits>

#include "cpu/int8_matmul/choose.h"
#include "elements.h"
#include "int8_matmul_reference.h"
#include "test.h"

#define PK_ISA wide512_pairs
#define PK_LANES 16
#define PK_REGISTERS 32
#include "cpu/int8_matmul/matmul.cpp"
#include "cpu/int8_matmul/quantize.cpp"

namespace pk::wide512 {
extern const Int8Kernels int8_kernels;
extern const QuantizeKernels quantize_kernels;
}  // namespace pk::wide512

using namespace pk;

namespace {

// Runs on these tables, or on those of the ISA in force.
const Int8Kernels* wide = nullptr;
const QuantizeKernels* wide_quantize = nullptr;

void run(const Int8MatmulArgs& p, const Executor& executor) {
  Int8MatmulPlan plan;
  const Status s = make_plan(p, executor.threads, &plan);
  EXPECT(s || wide, "%s", s.error);  // a blob packed by `wide` is another ISA's
  if (wide) fill_plan(p, *wide, executor.threads, &plan);
  std::vector<char> workspace(static_cast<size_t>(plan.workspace_bytes) + 1, 0x55);
  pk::run(plan, workspace.data() + 1, executor);  // any alignment will do
}

void run(const QuantizeInt8Args& p, const Executor& executor) {
  QuantizeInt8Plan plan;
  const Status s = make_plan(p, &plan);
  EXPECT(s, "%s", s.error);
  if (wide_quantize) plan.kernels = wide_quantize;
  pk::run(plan, executor);
}

std::vector<char> pack(const std::vector<int8_t>& b, int64_t k, int64_t n, int64_t sk, int64_t sn) {
  Int8PackingPlan plan;
  EXPECT(make_packing_plan(k, n, &plan), "packing plan");
  std::vector<char> blob(static_cast<size_t>(plan.packed_bytes), 0x55);
  if (wide) {
    wide->pack(b.data(), k, n, sk, sn, blob.data() + sizeof(PackedHeader), serial_executor());
  } else {
    pk::pack(plan, b.data(), sk, sn, blob.data(), serial_executor());
  }
  return blob;
}

void matmul_case(int64_t m, int64_t n, int64_t k, bool extremes, bool zero_point, int form, const Executor& executor) {
  const auto a = test::random_bytes(static_cast<size_t>(m * k), 1, extremes),
             b = test::random_bytes(static_cast<size_t>(n * k), 2, extremes);
  // 0: rows. 1: both transposed. 2: packed from rows. 3: packed from the transposed.
  const bool transposed = form % 2 == 1;
  const int64_t am = transposed && form == 1 ? 1 : k, ak = transposed && form == 1 ? m : 1;
  const int64_t bk = transposed ? 1 : n, bn = transposed ? k : 1;
  const std::vector<int32_t> zero = test::zero_points(m);
  std::vector<int32_t> out(static_cast<size_t>(m * n) + 1, 77);
  Int8MatmulArgs p;
  p.m = m, p.n = n, p.k = k, p.a = a.data(), p.a_stride_m = am, p.a_stride_k = ak;
  p.b = b.data(), p.b_stride_k = bk, p.b_stride_n = bn, p.out = out.data();
  if (zero_point) p.a_zero_point = zero.data(), p.a_zero_point_stride = 1;
  std::vector<char> blob;
  if (form >= 2) {
    blob = pack(b, k, n, bk, bn);
    p.packed = blob.data(), p.packed_bytes = static_cast<int64_t>(blob.size()), p.b = nullptr;
  }
  run(p, executor);
  const int64_t wrong = test::wrong_sums(p, b.data());
  EXPECT(wrong == 0, "%ld of %ld wrong: m %ld n %ld k %ld extremes %d zero_point %d form %d", wrong, m * n, m, n, k,
         extremes, zero_point, form);
  EXPECT(out.back() == 77, "wrote behind the output");
}

// Scales, bias, zero point and each output type, on whole powers of two: exact in float.
void epilogue_case(DType out_dtype) {
  const int64_t m = 7, n = 45, k = 33;
  const auto a = test::random_bytes(m * k, 3, false), b = test::random_bytes(n * k, 4, false);
  std::vector<float> as(m), bs(n), bias(n);
  for (size_t i = 0; i < m; ++i) as[i] = std::ldexp(1.0f, -static_cast<int>(i % 3));
  for (size_t j = 0; j < n; ++j) bs[j] = std::ldexp(1.0f, -4 - static_cast<int>(j % 5)), bias[j] = 0.25f * j - 3;
  const int32_t zero = 5;
  test::Elements<std::vector<char>> out(out_dtype, m * n);
  Int8MatmulArgs p;
  p.m = m, p.n = n, p.k = k, p.a = a.data(), p.a_stride_m = k, p.a_stride_k = 1;
  p.b = b.data(), p.b_stride_k = n, p.b_stride_n = 1, p.out = out.data(), p.out_dtype = out_dtype;
  p.a_scale = as.data(), p.a_scale_stride = 1, p.b_scale = bs.data(), p.b_scale_stride = 1, p.bias = bias.data();
  p.a_zero_point = &zero, p.activation = Activation::relu;
  run(p, test::thread_executor(2));
  for (size_t i = 0; i < m; ++i) {
    for (size_t j = 0; j < n; ++j) {
      const int64_t sum = test::int8_sum(a.data() + i * k, 1, b.data() + j, n, k, zero);
      const float y = std::fmax(0.0f, static_cast<float>(sum) * as[i] * bs[j] + bias[j]);
      const float got = out[i * n + j];
      if (out_dtype == DType::bf16) {
        EXPECT(std::fabs(got - y) <= std::fabs(y) / 256, "bf16: %g for %g", got, y);
        continue;
      }
      const float expected = out_dtype == DType::i8 ? test::rounded_to_int8(y, -128.0f) : y;
      EXPECT(got == expected, "output type %d: %g for %g", static_cast<int>(out_dtype), got, expected);
    }
  }
}

// Rows of b further apart than they are long, few rows of a: nothing between them is read into a sum.
void strided_case(int64_t m, bool transposed) {
  const int64_t n = 150, k = 315, step = (transposed ? k : n) + 9, steps = transposed ? n : k;
  const auto a = test::random_bytes(static_cast<size_t>(m * k), 8, false),
             b = test::random_bytes(static_cast<size_t>(step * steps), 9, true);
  std::vector<int32_t> out(static_cast<size_t>(m * n));
  Int8MatmulArgs p;
  p.m = m, p.n = n, p.k = k, p.a = a.data(), p.a_stride_m = k, p.a_stride_k = 1, p.b = b.data(), p.out = out.data();
  p.b_stride_k = transposed ? 1 : step, p.b_stride_n = transposed ? step : 1;
  run(p, test::thread_executor(2));
  const int64_t wrong = test::wrong_sums(p, b.data());
  EXPECT(wrong == 0, "%ld wrong: m %ld transposed %d", wrong, m, transposed);
}

// Numbers in the middle between two steps and next to it, where x / scale and x * (1 / scale) may round differently.
std::vector<float> between_steps(int64_t m, int64_t k) {
  auto x = test::normal(static_cast<size_t>(m * k), 5);
  for (int64_t i = 0; i < m; ++i) {
    float* const row = x.data() + i * k;
    const float scale = 127 * std::fabs(row[0]) / 127;
    for (int64_t j = 1; j < k; ++j) {
      const float middle = (static_cast<float>(j % 253 - 126) - 0.5f) * scale;
      row[j] = j % 3 == 0 ? middle : std::nextafter(middle, j % 3 == 1 ? 1e9f : -1e9f);
    }
    row[0] = 127 * std::fabs(row[0]);
  }
  return x;
}

// A float a: the same as quantising its rows before.
void dynamic_case(int64_t m, int64_t n, int64_t k, bool close = false) {
  const auto x = close ? between_steps(m, k) : test::normal(static_cast<size_t>(m * k), 5);
  const auto b = test::random_bytes(static_cast<size_t>(n * k), 6, false);
  const std::vector<float> bs(static_cast<size_t>(n), 0.01f);
  std::vector<int8_t> q(x.size());
  std::vector<float> scale(static_cast<size_t>(m)), fused(static_cast<size_t>(m * n)), two_steps = fused;
  std::vector<int32_t> zero(static_cast<size_t>(m));
  QuantizeInt8Args quantize;
  quantize.x = x.data(), quantize.channels = m, quantize.inner = k;
  quantize.q = q.data(), quantize.scale = scale.data(), quantize.zero_point = zero.data();
  run(quantize, serial_executor());
  Int8MatmulArgs p;
  p.m = m, p.n = n, p.k = k, p.a = x.data(), p.a_dtype = DType::f32, p.a_stride_m = k, p.a_stride_k = 1;
  p.b = b.data(), p.b_stride_k = n, p.b_stride_n = 1, p.b_scale = bs.data(), p.b_scale_stride = 1;
  p.out_dtype = DType::f32, p.out = fused.data();
  run(p, test::thread_executor(3));
  p.a = q.data(), p.a_dtype = DType::i8, p.a_scale = scale.data(), p.a_scale_stride = 1, p.out = two_steps.data();
  run(p, serial_executor());
  EXPECT(fused == two_steps, "m %ld n %ld k %ld", m, n, k);
}

void quantize_case(int64_t outer, int64_t channels, int64_t inner, bool symmetric) {
  const size_t c = static_cast<size_t>(channels), total = static_cast<size_t>(outer * channels * inner);
  auto x = test::normal(total, 7, 3.0f);
  for (size_t i = 0; i < total; ++i) {
    if (i / static_cast<size_t>(inner) % c == 1) x[i] = 0;
  }
  std::vector<int8_t> q(total + 1, 77);
  std::vector<float> scale(c);
  std::vector<int32_t> zero(c);
  QuantizeInt8Args p;
  p.x = x.data(), p.outer = outer, p.channels = channels, p.inner = inner, p.symmetric = symmetric;
  p.q = q.data(), p.scale = scale.data(), p.zero_point = zero.data();
  run(p, test::thread_executor(2));
  EXPECT(q.back() == 77, "wrote behind q");
  test::expect_quantized(test::quantize_reference(x, channels, inner, symmetric), x, q, scale, zero);
}

void everything() {
  for (const auto& s : test::kInt8Sizes) {
    for (int form = 0; form < 4; ++form) {
      for (const bool zero_point : {false, true}) {
        matmul_case(s[0], s[1], s[2], false, zero_point, form, serial_executor());
        matmul_case(s[0], s[1], s[2], true, zero_point, form, test::thread_executor(3));
      }
    }
  }
  for (const DType t : {DType::f32, DType::bf16, DType::i8}) epilogue_case(t);
  dynamic_case(1, 40, 700);
  dynamic_case(9, 33, 21);
  dynamic_case(120, 600, 530);
  dynamic_case(50, 40, 700, true);
  for (int64_t m = 1; m <= 5; ++m) {
    for (const bool transposed : {false, true}) strided_case(m, transposed);
  }
  for (const bool symmetric : {true, false}) {
    for (const auto& s : test::kQuantizeSizes) quantize_case(s[0], s[1], s[2], symmetric);
  }
}

void limits_case() {
  // All -128 at the longest k: the sum is 2^31 - 2^14, and with a zero point of 127 it is 65793 * 255 * 128.
  const int64_t k = kInt8MaxK, kz = kInt8MaxKWithZeroPoint;
  const std::vector<int8_t> v(static_cast<size_t>(k), -128);
  int32_t out = 0;
  Int8MatmulArgs p;
  p.m = 1, p.n = 1, p.k = k, p.a = v.data(), p.a_stride_m = k, p.a_stride_k = 1;
  p.b = v.data(), p.b_stride_k = 1, p.b_stride_n = 1, p.out = &out;
  run(p, serial_executor());
  EXPECT(out == static_cast<int64_t>(k) << 14, "%d", out);
  const int32_t zero = 127;
  p.k = kz, p.a_zero_point = &zero;
  run(p, serial_executor());
  EXPECT(out == kz * 255 * 128, "%d", out);
}

void refusals() {
  std::vector<int8_t> v(64, 1);
  std::vector<int32_t> out(64);
  auto blob = pack(v, 8, 8, 8, 1);
  Int8MatmulArgs good;
  good.m = 8, good.n = 8, good.k = 8, good.a = v.data(), good.a_stride_m = 8, good.a_stride_k = 1;
  good.packed = blob.data(), good.packed_bytes = static_cast<int64_t>(blob.size()), good.out = out.data();
  Int8MatmulPlan plan;
  const auto refuses = [&](const Int8MatmulArgs& p, const char* word) {
    const Status s = make_plan(p, 1, &plan);
    EXPECT(!s && std::strstr(s.error, word) != nullptr, "expected '%s', got '%s'", word, s ? "success" : s.error);
  };
  EXPECT(make_plan(good, 1, &plan) && plan.workspace_bytes > 0, "the good one");
  Int8MatmulArgs p = good;
  p.k = kInt8MaxK + 1, p.packed = nullptr;
  refuses(p, "131071");
  // Sizes whose arithmetic would wrap.
  Int8PackingPlan packing;
  QuantizeInt8Plan quantizing;
  const int64_t huge[] = {int64_t{1} << 61, INT64_MAX, kInt8MaxN + 1};
  for (const int64_t size : huge) {
    EXPECT(!make_packing_plan(4, size, &packing), "%lld columns", static_cast<long long>(size));
    EXPECT(!make_packing_plan(0, size, &packing), "%lld columns of nothing", static_cast<long long>(size));
    p = good, p.n = size;
    refuses(p, "2^36 columns");
    p = good, p.m = size << 20 >> 20 == size ? size << 20 : size;
    refuses(p, "too large");
    QuantizeInt8Args q;
    q.outer = size, q.channels = int64_t{1} << 21, q.inner = 0;
    EXPECT(!make_plan(q, &quantizing), "quantises %lld slices", static_cast<long long>(size));
  }
  EXPECT(make_packing_plan(kInt8MaxK, kInt8MaxN, &packing) && packing.packed_bytes > kInt8MaxK * kInt8MaxN,
         "the largest");
  EXPECT(!make_packing_plan(-1, 4, &packing) && !make_packing_plan(4, -1, &packing), "negative");
  p = good, p.packed_bytes = 10;
  refuses(p, "too short");
  p = good, p.packed_bytes -= 1;
  refuses(p, "cut short");
  p = good, p.n = 9;
  refuses(p, "columns is not n");
  p = good, p.k = 7;
  refuses(p, "rows is not");
  p = good, p.activation = Activation::relu;
  refuses(p, "plain sum");
  const int32_t zero = 128;
  p = good, p.a_zero_point = &zero;
  refuses(p, "[-128, 127]");
  p = good, p.a_dtype = DType::i32;
  refuses(p, "expected int8");
  p = good, p.a_dtype = DType::f16, p.out_dtype = DType::f32;
  refuses(p, "expected int8");
  p = good, p.out_dtype = DType::f16;
  refuses(p, "out_dtype");
  blob[0] = 'X';
  refuses(good, "first bytes");
  blob[0] = 'P', blob[8] = 9;
  refuses(good, "another version");
  blob[8] = 1, blob[12] = static_cast<char>(blob[12] ^ 1);
  refuses(good, "another instruction set");
}

}  // namespace

int main() {
  for (const Isa isa : test::host_isas()) {
    const Status s = force_isa(isa_name(isa));
    EXPECT(s, "%s", s.error);
    everything();
    limits_case();
    refusals();
  }
  if (test::is_quick()) return test::finish();
  wide = &wide512::int8_kernels, wide_quantize = &wide512::quantize_kernels;
  everything();
  limits_case();
  wide = &wide512_pairs::int8_kernels, wide_quantize = &wide512_pairs::quantize_kernels;
  everything();
  limits_case();
  return test::finish();
}
