// Notes of tensors: where and how they lay in memory, and the contents of short ones, for the comparison at every call
// of a program. A program may have hundreds of weights, and to ask each for its address, sizes and strides in Python
// takes longer than a small kernel.
#include "torch/notes.h"

#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <utility>
#include <vector>

#include "torch/checks.h"

namespace pk::binding {
namespace {

// Where a tensor's elements are. The pointers to sizes and strides live as long as the tensor stays as it is.
struct Geometry {
  explicit Geometry(const Tensor& t) {
    const AtenTensorHandle handle = t.get();
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_data_ptr(handle, &data));
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(handle, &dtype));
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dim(handle, &dim));
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_sizes(handle, &sizes));
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_strides(handle, &strides));
  }
  void* data;
  int32_t dtype;
  int64_t dim, *sizes, *strides;
};

// Of vectors of the CPU the elements count as well: torch's batch norm writes to its statistics without counting a
// version.
constexpr int64_t kMostCompared = 1 << 16;  // bytes of a tensor

// A call before this one has had all caches to itself, so that each tensor is several lines of memory far away: those
// of tensors further on are fetched while one is compared, and what they are compared with lies in a row.
class Note {
 public:
  explicit Note(const std::vector<Tensor>& tensors) {
    for (const Tensor& t : tensors) {
      const Geometry now(t);
      const int64_t bytes = t.numel() * t.element_size();
      const bool counts = now.dim == 1 && t.is_cpu() && t.is_contiguous() && bytes > 0 && bytes <= kMostCompared;
      const auto* first = static_cast<const char*>(now.data);
      if (counts) elements_.insert(elements_.end(), first, first + bytes);
      numbers_.insert(numbers_.end(), now.sizes, now.sizes + now.dim);
      numbers_.insert(numbers_.end(), now.strides, now.strides + now.dim);
      noted_.push_back({t, now.data, now.dim, counts ? static_cast<size_t>(bytes) : 0, now.dtype});
    }
  }
  bool is_as_noted() const {
    const int64_t* numbers = numbers_.data();
    const char* elements = elements_.data();
    for (size_t i = 0; i < noted_.size(); ++i) {
      if (i + kAhead < noted_.size()) fetch(noted_[i + kAhead]);
      const Noted& then = noted_[i];
      const Geometry now(then.tensor);
      if (now.data != then.data || now.dtype != then.dtype || now.dim != then.dim ||
          !std::equal(now.sizes, now.sizes + now.dim, numbers) ||
          !std::equal(now.strides, now.strides + now.dim, numbers + now.dim) ||
          (then.bytes > 0 && std::memcmp(elements, now.data, then.bytes) != 0)) {
        return false;
      }
      numbers += 2 * now.dim;
      elements += then.bytes;
    }
    return true;
  }

 private:
  struct Noted {
    Tensor tensor;
    void* data;
    int64_t dim;
    size_t bytes;  // of its elements, where these count
    int32_t dtype;
  };
  static constexpr size_t kAhead = 8;

  // A handle leads to a pointer to what torch knows of the tensor, some lines.
  static void fetch(const Noted& noted) {
    const void* known;
    std::memcpy(&known, noted.tensor.get(), sizeof known);
    for (int64_t byte = 0; byte < 256; byte += 64) __builtin_prefetch(static_cast<const char*>(known) + byte);
    for (size_t byte = 0; byte < noted.bytes && byte < 512; byte += 64) {
      __builtin_prefetch(static_cast<const char*>(noted.data) + byte);
    }
  }

  std::vector<Noted> noted_;
  std::vector<int64_t> numbers_;  // sizes and strides of each
  std::vector<char> elements_;
};

// By number, so that a number that was never given is an error and no address.
class Notes {
 public:
  int64_t add(Note note) {
    auto shared = std::make_shared<const Note>(std::move(note));
    const std::lock_guard lock(mutex_);
    notes_.emplace(++last_, std::move(shared));
    return last_;
  }
  std::shared_ptr<const Note> find(int64_t number, const char* op) {
    const std::lock_guard lock(mutex_);
    const auto found = notes_.find(number);
    check(found != notes_.end(), op, "note", "expected what note_tensors gave and forget_note has not had, got ",
          number);
    return found->second;
  }
  void forget(int64_t number) {
    std::shared_ptr<const Note> last_of_it;  // goes, with its tensors, after the lock
    const std::lock_guard lock(mutex_);
    const auto found = notes_.find(number);
    if (found == notes_.end()) return;
    last_of_it = std::move(found->second);
    notes_.erase(found);
  }

 private:
  std::mutex mutex_;
  std::unordered_map<int64_t, std::shared_ptr<const Note>> notes_;
  int64_t last_ = 0;
};

Notes& notes() {
  static auto* const all = new Notes;  // never destroyed: the tensors' own library may be gone by then
  return *all;
}

int64_t note_tensors_op(std::vector<Tensor> tensors) { return notes().add(Note(tensors)); }

}  // namespace

bool are_as_noted(int64_t note) { return notes().find(note, "are_as_noted")->is_as_noted(); }

void forget_note(int64_t note) { notes().forget(note); }

STABLE_TORCH_LIBRARY_FRAGMENT(pykernels, m) {
  m.def("note_tensors(Tensor[] tensors) -> int");
  m.def("are_as_noted(int note) -> bool");
}

STABLE_TORCH_LIBRARY_IMPL(pykernels, CompositeExplicitAutograd, m) {
  m.impl("note_tensors", TORCH_BOX(&note_tensors_op));
  m.impl("are_as_noted", TORCH_BOX(&are_as_noted));
}

}  // namespace pk::binding
