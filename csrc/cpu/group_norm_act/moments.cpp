// Means and sums of squared deviations, a lane for each channel, or for every kLanes-th element of a plane.
//
// A block of eight vectors is loaded once: its mean and the squares of the deviations from that are made in registers,
// and merged into those of the blocks before. Of channels, four vectors go down the pixels side by side, so that whole
// cache lines are read; eight pixels at a time, for those of 1024 channels all fall into one set of the cache.
#include "cpu/elements.h"
#include "cpu/group_norm_act/kernels.h"

namespace pk {
namespace PK_ISA {
namespace {

constexpr int kBlock = 8;

// Of `count` vectors: their means are shift + mean, for neither to lose what the other has.
struct Lanes {
  F32 shift, mean, squares;
};

// Merges the vectors get(i), i < size, with the `seen` before.
template <int kSize, class Get>
inline void merge(Lanes& all, int64_t seen, const Get& get) {
  constexpr float kShare = 1.0f / kSize;
  F32 v[kSize], sums[4] = {}, squares[4] = {};
#pragma GCC unroll 8
  for (int i = 0; i < kSize; ++i) {
    v[i] = get(i);
    sums[i % 4] += v[i];
  }
  const F32 mean = ((sums[0] + sums[1]) + (sums[2] + sums[3])) * kShare;
#pragma GCC unroll 8
  for (int i = 0; i < kSize; ++i) {
    const F32 apart = v[i] - mean;
    squares[i % 4] = fma(apart, apart, squares[i % 4]);
  }
  if (seen == 0) all.shift = mean;
  const float part = kSize / static_cast<float>(seen + kSize);
  const F32 between = (mean - all.shift) - all.mean;
  all.mean += between * part;
  all.squares += (squares[0] + squares[1]) + (squares[2] + squares[3]);
  all.squares += between * between * (static_cast<float>(seen) * part);
}

// Of kCount vectors side by side, get(i, k) with i < count and k < kCount.
template <int kCount, class Get>
inline void moments_of(int64_t count, Lanes (&all)[kCount], const Get& get) {
  for (Lanes& m : all) m = Lanes();
  int64_t seen = 0;
  for (; seen + kBlock <= count; seen += kBlock) {
    for (int k = 0; k < kCount; ++k) merge<kBlock>(all[k], seen, [&](int64_t i) { return get(seen + i, k); });
  }
  for (; seen < count; ++seen) {
    for (int k = 0; k < kCount; ++k) merge<1>(all[k], seen, [&](int64_t) { return get(seen, k); });
  }
}

inline void keep(const Lanes& m, int64_t c, int64_t lanes, ChannelMoments to) {
  store_partial(to.shift + c, m.shift, lanes);
  store_partial(to.mean + c, m.mean, lanes);
  store_partial(to.squares + c, m.squares, lanes);
}

template <int kCount, class T>
void of_vectors(const T* x, int64_t step, int64_t count, int64_t c, ChannelMoments to) {
  Lanes all[kCount];
  moments_of(count, all, [&](int64_t i, int k) { return load_widened(x + i * step + c + k * kLanes); });
  for (int k = 0; k < kCount; ++k) keep(all[k], c + k * kLanes, kLanes, to);
}

template <class T>
void of_channels(const T* x, int64_t step, int64_t count, int64_t channels, ChannelMoments to) {
  int64_t c = 0;
  for (; c + 4 * kLanes <= channels; c += 4 * kLanes) of_vectors<4>(x, step, count, c, to);
  for (; c + kLanes <= channels; c += kLanes) of_vectors<1>(x, step, count, c, to);
  if (c == channels) return;
  const int64_t lanes = channels - c;
  Lanes all[1];
  moments_of(count, all, [&](int64_t i, int) { return load_widened(x + i * step + c, lanes); });
  keep(all[0], c, lanes, to);
}

template <class T>
Moments of_plane(const T* x, int64_t count) {
  const int64_t vectors = count / kLanes;
  Lanes lanes[1];
  moments_of(vectors, lanes, [&](int64_t i, int) { return load_widened(x + i * kLanes); });
  const Lanes& m = lanes[0];
  const auto d = [](float v) { return static_cast<double>(v); };
  Moments all = merged(vectors ? kLanes : 0, static_cast<double>(vectors),
                       [&](int64_t k) { return Moments{0, d(m.shift[k]) + d(m.mean[k]), d(m.squares[k])}; });
  const T* const last = x + vectors * kLanes;
  all.add(merged(count % kLanes, 1, [&](int64_t i) { return Moments{0, d(widen(last[i])), 0}; }));
  return all;
}

void channels(DType dtype, const void* x, int64_t step, int64_t count, int64_t channels, ChannelMoments to) {
  if (dtype == DType::f32) return of_channels(static_cast<const float*>(x), step, count, channels, to);
  of_channels(static_cast<const bf16_t*>(x), step, count, channels, to);
}

void plane(DType dtype, const void* x, int64_t count, double* mean, double* squares) {
  const Moments m = dtype == DType::f32 ? of_plane(static_cast<const float*>(x), count)
                                        : of_plane(static_cast<const bf16_t*>(x), count);
  *mean = m.mean;
  *squares = m.squares;
}

}  // namespace

extern const GroupNormActKernels group_norm_act_kernels;
const GroupNormActKernels group_norm_act_kernels = {channels, plane};

}  // namespace PK_ISA
}  // namespace pk
