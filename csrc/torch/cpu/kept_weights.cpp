#include "torch/cpu/kept_weights.h"

#include <atomic>
#include <cstring>
#include <memory>
#include <mutex>
#include <unordered_map>

#include "cpu/parallel_for.h"

namespace pk::binding {
namespace {

constexpr int64_t kMostKept = 128 << 20;      // bytes of copies and packed weights
constexpr size_t kMostKnown = 1024;           // weights
constexpr int64_t kUnused = 1024;             // calls after which another weight may have a kept one's room
constexpr int64_t kCompareGrain = 128 << 10;  // bytes

// Where a weight lies and how, and what it is packed for.
struct Key {
  uintptr_t data;
  int64_t sizes[4], strides[4], dtype;
  PackedFor what;

  bool operator==(const Key&) const = default;
};
struct KeyHash {
  size_t operator()(const Key& key) const {
    return std::hash<uintptr_t>()(key.data) * 31 + std::hash<int64_t>()(key.what[0]);
  }
};

struct Kept {
  Tensor copy, packed;
  int64_t bytes;
};

struct Known {
  uint64_t sample;  // of the values that it had last
  std::shared_ptr<const Kept> kept;
  int64_t last_call;
};

// A hash of 32 values: a cheap test that notices most changed weights.
uint64_t sample_of(const char* data, int64_t bytes) {
  constexpr int64_t kSamples = 32;
  uint64_t sample = 0;
  for (int64_t i = 0; i < kSamples; ++i) {
    uint16_t value;
    std::memcpy(&value, data + (bytes - 2) / 2 * i / (kSamples - 1) * 2, sizeof value);
    sample = (sample ^ value) * 0x100000001b3;
  }
  return sample;
}

bool is_same(const char* a, const char* b, int64_t bytes, const Executor& executor) {
  std::atomic<bool> same = true;
  parallel_for(executor, 0, bytes, kCompareGrain, [&](int64_t begin, int64_t end) {
    if (std::memcmp(a + begin, b + begin, static_cast<size_t>(end - begin)) != 0) same = false;
  });
  return same;
}

// Do the elements fill the memory from the first one's on, in either memory format?
bool is_dense(const Tensor& t) {
  if (t.dim() != 4 || t.numel() == 0) return false;
  if (t.is_contiguous()) return true;
  const int64_t c = t.size(1), s = t.size(3);
  return t.stride(1) == 1 && t.stride(3) == c && t.stride(2) == c * s && t.stride(0) == c * s * t.size(2);
}

class KeptWeights {
 public:
  Tensor get(const Tensor& weight, const PackedFor& what, int64_t packed_bytes, const Executor& executor,
             const std::function<Tensor()>& pack) {
    const int64_t bytes = weight.numel() * weight.element_size();
    if (!is_dense(weight) || bytes < 2) return pack();
    const auto* data = static_cast<const char*>(weight.const_data_ptr());
    Key key = {reinterpret_cast<uintptr_t>(data), {}, {}, static_cast<int64_t>(weight.scalar_type()), what};
    for (int d = 0; d < 4; ++d) key.sizes[d] = weight.size(d), key.strides[d] = weight.stride(d);
    const uint64_t sample = sample_of(data, bytes);
    std::shared_ptr<const Kept> kept;
    bool known = false;
    {
      // Whoever finds the lock taken packs: after a fork nobody might ever give it back.
      const std::unique_lock lock(mutex_, std::try_to_lock);
      if (!lock.owns_lock()) return pack();
      ++calls_;
      const auto found = known_.find(key);
      known = found != known_.end() && found->second.sample == sample;
      if (known) {
        kept = found->second.kept;
        found->second.last_call = calls_;
      } else {
        know(key, sample);
      }
    }
    if (!known) return pack();
    if (kept && is_same(data, static_cast<const char*>(kept->copy.const_data_ptr()), bytes, executor)) {
      return kept->packed;
    }
    if (!has_room(bytes + packed_bytes)) return pack();
    // Copied before and compared after: what another thread writes meanwhile must not be taken for what was packed.
    const Tensor copy = empty({bytes}, ScalarType::Byte);
    auto* const copied = static_cast<char*>(copy.mutable_data_ptr());
    std::memcpy(copied, data, static_cast<size_t>(bytes));
    const Tensor packed = pack();
    if (is_same(data, copied, bytes, executor)) keep(key, Kept{copy, packed, bytes + packed.numel()});
    return packed;
  }

  // Bytes that are kept; -1 where the lock is taken.
  int64_t bytes() {
    const std::unique_lock lock(mutex_, std::try_to_lock);
    return lock.owns_lock() ? bytes_ : -1;
  }
  void forget() {
    const std::unique_lock lock(mutex_, std::try_to_lock);
    if (!lock.owns_lock()) return;
    known_.clear();
    bytes_ = 0;
  }

 private:
  // With the lock: a weight that is new, or has other values than before.
  void know(const Key& key, uint64_t sample) {
    Known& now = known_[key];
    drop(&now);
    now.sample = sample;
    now.last_call = calls_;
    if (known_.size() <= kMostKnown) return;
    for (auto i = known_.begin(); i != known_.end();) {
      if (i->second.last_call >= calls_ - kUnused / 2) {
        ++i;
      } else {
        drop(&i->second);
        i = known_.erase(i);
      }
    }
  }
  void drop(Known* known) {
    if (known->kept) bytes_ -= known->kept->bytes;
    known->kept = nullptr;
  }

  void keep(const Key& key, const Kept& kept) {
    const std::unique_lock lock(mutex_, std::try_to_lock);
    if (!lock.owns_lock() || !make_room(kept.bytes)) return;
    const auto found = known_.find(key);
    if (found == known_.end()) return;
    drop(&found->second);
    found->second.kept = std::make_shared<const Kept>(kept);
    bytes_ += kept.bytes;
  }

  bool has_room(int64_t needed) {
    const std::unique_lock lock(mutex_, std::try_to_lock);
    return lock.owns_lock() && make_room(needed);
  }

  // With the lock.
  bool make_room(int64_t needed) {
    for (auto& [key, known] : known_) {
      if (bytes_ + needed <= kMostKept) break;
      if (known.last_call < calls_ - kUnused) drop(&known);
    }
    return bytes_ + needed <= kMostKept;
  }

  std::mutex mutex_;
  std::unordered_map<Key, Known, KeyHash> known_;
  int64_t bytes_ = 0, calls_ = 0;
};

KeptWeights& kept_weights() {
  static auto* const all = new KeptWeights;  // never destroyed: the tensors' own library may be gone by then
  return *all;
}

int64_t kept_weight_bytes_op() { return kept_weights().bytes(); }
void forget_kept_weights_op() { kept_weights().forget(); }

}  // namespace

Tensor kept_or_packed(const Tensor& weight, const PackedFor& what, int64_t packed_bytes, const Executor& executor,
                      const std::function<Tensor()>& pack) {
  return kept_weights().get(weight, what, packed_bytes, executor, pack);
}

STABLE_TORCH_LIBRARY_FRAGMENT(pykernels, m) {
  m.def("kept_weight_bytes() -> int");
  m.def("forget_kept_weights() -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(pykernels, CompositeExplicitAutograd, m) {
  m.impl("kept_weight_bytes", TORCH_BOX(&kept_weight_bytes_op));
  m.impl("forget_kept_weights", TORCH_BOX(&forget_kept_weights_op));
}

}  // namespace pk::binding
