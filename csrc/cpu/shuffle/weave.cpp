// Weaving and unravelling: two streams by shuffles of two vectors, four by two rounds of them, others element by
// element.
#include <cstring>
#include <utility>

#include "cpu/shuffle/kernels.h"
#include "cpu/vec.h"

namespace pk {
namespace PK_ISA {
namespace {

template <class T>
struct VectorOf;
template <>
struct VectorOf<uint32_t> {
  using Type = U32;
};
template <>
struct VectorOf<uint16_t> {
  using Type = uint16_t __attribute__((vector_size(kVecBytes)));
};
// Bytes: of a size that two instructions shuffle on any ISA.
template <>
struct VectorOf<uint8_t> {
  using Type = uint8_t __attribute__((vector_size(16)));
};
template <class T>
using Vector = typename VectorOf<T>::Type;
template <class T>
inline constexpr int kPer = static_cast<int>(sizeof(Vector<T>) / sizeof(T));  // elements of a vector

// The elements of a and b in turn: those of their first halves, and of their second.
template <class V, int... lane>
inline void zip(V a, V b, V& first, V& second, std::integer_sequence<int, lane...>) {
  constexpr int kCount = sizeof...(lane);
  first = __builtin_shufflevector(a, b, (lane / 2 + (lane % 2) * kCount)...);
  second = __builtin_shufflevector(a, b, (kCount / 2 + lane / 2 + (lane % 2) * kCount)...);
}
// Those at even places of a and then b, and those at odd ones.
template <class V, int... lane>
inline void unzip(V a, V b, V& even, V& odd, std::integer_sequence<int, lane...>) {
  even = __builtin_shufflevector(a, b, (2 * lane)...);
  odd = __builtin_shufflevector(a, b, (2 * lane + 1)...);
}

template <class T, int64_t kStreams>
inline void weave_vectors(const Vector<T> (&s)[kStreams], T* whole) {
  constexpr std::make_integer_sequence<int, kPer<T>> kAll;
  if constexpr (kStreams == 2) {
    Vector<T> v[2];
    zip(s[0], s[1], v[0], v[1], kAll);
    for (int i = 0; i < 2; ++i) store(whole + i * kPer<T>, v[i]);
  } else {
    Vector<T> a[2], b[2], v[4];
    zip(s[0], s[2], a[0], a[1], kAll);
    zip(s[1], s[3], b[0], b[1], kAll);
    zip(a[0], b[0], v[0], v[1], kAll);
    zip(a[1], b[1], v[2], v[3], kAll);
    for (int i = 0; i < 4; ++i) store(whole + i * kPer<T>, v[i]);
  }
}

template <class T, int64_t kStreams>
inline void unravel_vectors(const T* whole, Vector<T> (&s)[kStreams]) {
  constexpr std::make_integer_sequence<int, kPer<T>> kAll;
  const auto at = [&](int i) { return load<Vector<T>>(whole + i * kPer<T>); };
  if constexpr (kStreams == 2) {
    unzip(at(0), at(1), s[0], s[1], kAll);
  } else {
    Vector<T> even[2], odd[2];
    unzip(at(0), at(1), even[0], odd[0], kAll);
    unzip(at(2), at(3), even[1], odd[1], kAll);
    unzip(even[0], even[1], s[0], s[2], kAll);
    unzip(odd[0], odd[1], s[1], s[3], kAll);
  }
}

// kStreams: how many, 2 or 4, or 0 for any number. kOut: from the streams into the whole, else the other way.
template <class T, int64_t kStreams, bool kOut>
void run_streams(const Weave& call) {
  const int64_t streams = kStreams ? kStreams : call.streams;
  for (int64_t t = 0; t < call.times; ++t) {
    T* const whole = reinterpret_cast<T*>(call.whole + t * call.whole_step);
    T* at[kStreams ? kStreams : kMostStreams];
    for (int64_t s = 0; s < streams; ++s) at[s] = reinterpret_cast<T*>(call.stream[s] + t * call.step[s]);
    int64_t i = 0;
    if constexpr (kStreams) {
      while (call.count - i >= kPer<T> || (i > 0 && i < call.count)) {
        // The last elements with some before them once more.
        if (call.count - i < kPer<T>) i = call.count - kPer<T>;
        Vector<T> v[kStreams];
        if constexpr (kOut) {
          for (int64_t s = 0; s < kStreams; ++s) v[s] = load<Vector<T>>(at[s] + i);
          weave_vectors<T, kStreams>(v, whole + i * kStreams);
        } else {
          unravel_vectors<T, kStreams>(whole + i * kStreams, v);
          for (int64_t s = 0; s < kStreams; ++s) store(at[s] + i, v[s]);
        }
        i += kPer<T>;
      }
    }
    for (; i < call.count; ++i) {
      for (int64_t s = 0; s < streams; ++s) {
        if constexpr (kOut) {
          whole[i * streams + s] = at[s][i];
        } else {
          at[s][i] = whole[i * streams + s];
        }
      }
    }
  }
}

template <class T, bool kOut>
void run_elements(const Weave& call) {
  if (call.streams == 2) return run_streams<T, 2, kOut>(call);
  if (call.streams == 4) return run_streams<T, 4, kOut>(call);
  run_streams<T, 0, kOut>(call);
}

void weave(const Weave& call) {
  if (call.bytes == 4) return run_elements<uint32_t, true>(call);
  if (call.bytes == 1) return run_elements<uint8_t, true>(call);
  run_elements<uint16_t, true>(call);
}

void unravel(const Weave& call) {
  if (call.bytes == 4) return run_elements<uint32_t, false>(call);
  if (call.bytes == 1) return run_elements<uint8_t, false>(call);
  run_elements<uint16_t, false>(call);
}

}  // namespace

extern const ShuffleKernels shuffle_kernels;
const ShuffleKernels shuffle_kernels = {weave, unravel};

}  // namespace PK_ISA
}  // namespace pk
