// grad_x, grad_residual, grad_weight, grad_bias of batch_norm_act in two passes over memory:
//
//   1. grad_y, x (and the mask or the residual) -> sums of dz and dz * (x - mean) of each slab, joined to grad_bias and
//   grad_weight
//   2. grad_y, x (and the same) -> grad_x, grad_residual
//
// dz = grad_y * act'(z), where z is not kept: its sign is in the mask, or it is computed again from x. Where that would
// read the residual twice, the first pass writes grad_residual = dz, and the second reads that in place of grad_y.
#include "cuda/activate.cuh"
#include "cuda/batch_norm_act/batch_norm.cuh"

namespace pk::cuda {
namespace bn {
namespace {

// Rows that a thread has in flight; the elements of an unaligned one are loads of their own.
template <bool kWhole>
constexpr int kInFlight = kWhole ? 2 : 1;

// How dz comes of grad_y.
enum class Slope { one, from_mask, from_x, from_x_and_residual };

struct Backward {
  Walk walk;
  BatchNormActBackwardArgs args;
  Slope slope;
  float over_m;    // 1 / (n * hw); 0 where mean and var are no function of x
  float* partial;  // (slabs, 2, c): sums of dz and dz * (x - mean)
};

struct Sums {
  float dz, dzx;

  PK_DEVICE void add(const Sums& other) {
    dz += other.dz;
    dzx += other.dzx;
  }
  PK_DEVICE float first() const { return dz; }
  PK_DEVICE float second() const { return dzx; }
};

// What a group's dz is computed from, as it lies in memory.
template <class T, bool kWhole>
struct Inputs {
  Raw<T> grad_y, x, residual;
  unsigned mask;

  template <bool kLast>
  PK_DEVICE void read(const Backward& b, const Slab<kLast>& slab, int64_t row, const Lane<kWhole>& lane) {
    const int64_t offset = slab.offset + row * b.walk.row_stride;
    grad_y = load<T, kWhole>(static_cast<const T*>(b.args.grad_y) + offset, lane, b.walk.inner);
    x = load<T, kWhole>(static_cast<const T*>(b.args.forward.x) + offset, lane, b.walk.inner);
    if (b.slope == Slope::from_mask)
      mask = b.args.forward.mask[slab.mask_offset + row * b.walk.mask_stride + lane.group];
    if (b.slope == Slope::from_x_and_residual) {
      residual = load<T, kWhole>(static_cast<const T*>(b.args.forward.residual) + offset, lane, b.walk.inner);
    }
  }

  template <bool kLast>
  PK_DEVICE void dz(const Backward& b, const Affine<kLast>& affine, float (&out)[kGroup]) const {
    const BatchNormActArgs& f = b.args.forward;
    PK_UNROLL
    for (int j = 0; j < kGroup; ++j) out[j] = grad_y[j];
    if (b.slope == Slope::one) return;
    if (is_signed(f.activation)) {
      PK_UNROLL
      for (int j = 0; j < kGroup; ++j) {
        const bool positive = b.slope == Slope::from_mask ? (mask >> j & 1) != 0 : !(affine(x[j], j) <= 0.0f);
        out[j] = ActivationOf<FloatMath>::signed_gradient(out[j], positive, f.activation, f.negative_slope);
      }
      return;
    }
    PK_UNROLL
    for (int j = 0; j < kGroup; ++j) {
      float z = affine(x[j], j);
      if (b.slope == Slope::from_x_and_residual) z += residual[j];
      out[j] = ActivationOf<FloatMath>::gradient(out[j], z, f.activation, f.negative_slope);
    }
  }
};

template <class T, bool kLast, bool kWhole>
__global__ void __launch_bounds__(kThreads, kSumsBlocks) slab_sums(Backward b) {
  constexpr int kRows = kInFlight<kWhole>;
  const Walk& w = b.walk;
  const Slab<kLast> slab(w);
  // The first pass writes dz where the second would have to read the residual again.
  T* const write = b.slope == Slope::from_x_and_residual ? static_cast<T*>(b.args.grad_residual) : nullptr;
  Sums sums[kGroup] = {};
  for (int i = 0; i < slab.tiles; ++i) {
    const Lane<kWhole> lane = lane_of<kWhole>(w, slab.tile(i));
    if (!lane.active) continue;
    const Affine<kLast> affine(w, lane, b.args.forward);
    Inputs<T, kWhole> in[kRows];
    for_each_row<kRows>(
        slab, [&](int u, int64_t row) { in[u].read(b, slab, row, lane); },
        [&](int u, int64_t row) {
          float dz[kGroup];
          in[u].dz(b, affine, dz);
          if (write) store<T, kWhole>(write + slab.offset + row * w.row_stride, lane, w.inner, dz);
          PK_UNROLL
          for (int j = 0; j < kGroup; ++j) {
            if (!kLast && !kWhole && lane.element(j) >= w.inner) continue;
            sums[j].dz += dz[j];
            sums[j].dzx = fmaf(dz[j], in[u].x[j] - affine.mean[j], sums[j].dzx);
          }
        });
  }
  if constexpr (kLast) {
    store_sums<kLast, kWhole>(w, slab, sums, b.partial);
  } else {
    PK_UNROLL
    for (int half = kGroup / 2; half > 0; half /= 2) {
      PK_UNROLL
      for (int j = 0; j < half; ++j) sums[j].add(sums[j + half]);
    }
    Sums all[1] = {sums[0]};
    store_sums<kLast, kWhole>(w, slab, all, b.partial);
  }
}

constexpr int kSlabs = 32;  // slabs that a block of `join_sums` reads at once, each for 32 channels
constexpr int kLoads = 4;   // of a thread in flight

__global__ void __launch_bounds__(kWarp* kSlabs) join_sums(Backward b, int64_t slabs) {
  const int64_t channels = b.walk.channels, c = static_cast<int64_t>(blockIdx.x) * kWarp + threadIdx.x;
  const int y = static_cast<int>(threadIdx.y);
  Sums sums[1] = {};
  if (c < channels) {
    for (int64_t s = y; s < slabs; s += kSlabs * kLoads) {
      Sums read[kLoads] = {};
      PK_UNROLL
      for (int u = 0; u < kLoads; ++u) {
        const int64_t slab = s + u * kSlabs;
        if (slab < slabs) read[u] = {b.partial[2 * slab * channels + c], b.partial[(2 * slab + 1) * channels + c]};
      }
      PK_UNROLL
      for (int u = 0; u < kLoads; ++u) sums[0].add(read[u]);
    }
  }
  combine_rows(sums, static_cast<int>(threadIdx.x), kWarp, y, kSlabs, dynamic_shared<Sums>());
  if (y != 0 || c >= channels) return;
  b.args.grad_bias[c] = sums[0].dz;
  b.args.grad_weight[c] = sums[0].dzx * Affine<true>::inverse_deviation(b.args.forward, static_cast<int>(c));
}

// grad_x = scale * (dz - grad_bias / m - (x - mean) * grad_weight / (m * sqrt(var + eps)))
template <class T, bool kLast, bool kWhole>
__global__ void __launch_bounds__(kThreads, kPointwiseResident) gradients(Backward b) {
  constexpr int kRows = kInFlight<kWhole>;
  const Walk& w = b.walk;
  const Slab<kLast> slab(w);
  auto* const grad_x = static_cast<T*>(b.args.grad_x);
  auto* const grad_residual = static_cast<T*>(b.args.grad_residual);
  for (int i = 0; i < slab.tiles; ++i) {
    const Lane<kWhole> lane = lane_of<kWhole>(w, slab.tile(i));
    if (!lane.active) continue;
    const Affine<kLast> affine(w, lane, b.args.forward);
    const auto common = per_channel<kLast>(w, lane, [&](int c) { return b.args.grad_bias[c] * b.over_m; });
    const auto slope = per_channel<kLast>(w, lane, [&](int c) {
      return b.args.grad_weight[c] * b.over_m * Affine<kLast>::inverse_deviation(b.args.forward, c);
    });
    Inputs<T, kWhole> in[kRows];
    for_each_row<kRows>(
        slab, [&](int u, int64_t row) { in[u].read(b, slab, row, lane); },
        [&](int u, int64_t row) {
          float dz[kGroup];
          in[u].dz(b, affine, dz);
          if (grad_residual) store<T, kWhole>(grad_residual + slab.offset + row * w.row_stride, lane, w.inner, dz);
          PK_UNROLL
          for (int j = 0; j < kGroup; ++j) {
            const float centred = in[u].x[j] - affine.mean[j];
            dz[j] = affine.scale[j] * fmaf(-centred, slope[j], dz[j] - common[j]);
          }
          store<T, kWhole>(grad_x + slab.offset + row * w.row_stride, lane, w.inner, dz);
        });
  }
}

Slope slope_of(const BatchNormActArgs& f) {
  if (f.activation == Activation::none) return Slope::one;
  if (f.mask) return Slope::from_mask;
  return f.residual ? Slope::from_x_and_residual : Slope::from_x;
}

}  // namespace
}  // namespace bn

Status run(const BatchNormActBackwardPlan& plan, void* workspace, void* stream) {
  using namespace bn;
  const BatchNormActBackwardArgs& args = plan.args;
  const BatchNormActArgs& f = args.forward;
  const Slabs& p = plan.sums;
  Backward b = {walk_of(f.shape, p), args, slope_of(f), 0.0f, static_cast<float*>(workspace)};
  const int64_t m = f.shape.n * f.shape.hw;
  if (args.batch_statistics && m > 0) b.over_m = static_cast<float>(1.0 / static_cast<double>(m));
  const bool whole = p.inner % kGroup == 0 && is_aligned(f.x) && is_aligned(f.residual) && is_aligned(args.grad_y) &&
                     is_aligned(args.grad_x) && is_aligned(args.grad_residual);
  const int shared = (f.shape.channels_last ? kGroup : 1) * kThreads / 2 * static_cast<int>(sizeof(Sums));
  Status status = choose_kernel(f.dtype, f.shape.channels_last, whole, [&](auto element, auto last, auto all) {
    return launch(slab_sums<decltype(element), decltype(last)::value, decltype(all)::value>, launch_of(p, shared),
                  stream, b);
  });
  if (!status) return status;
  status = launch(join_sums,
                  {.grid = dim3(static_cast<unsigned>(ceil_div<int64_t>(f.shape.c, kWarp))),
                   .block = dim3(kWarp, kSlabs),
                   .shared_bytes = kWarp * kSlabs / 2 * static_cast<int>(sizeof(Sums))},
                  stream, b, p.slabs);
  if (!status) return status;
  if (b.slope == Slope::from_x_and_residual && args.grad_residual) {
    b.args.grad_y = args.grad_residual;
    b.args.grad_residual = nullptr;
    b.slope = Slope::one;
  }
  b.walk = walk_of(f.shape, plan.pointwise);
  return choose_kernel(f.dtype, f.shape.channels_last, whole, [&](auto element, auto last, auto all) {
    return launch(gradients<decltype(element), decltype(last)::value, decltype(all)::value>, launch_of(plan.pointwise),
                  stream, b);
  });
}

}  // namespace pk::cuda
