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

class Noted {
 public:
  explicit Noted(const Tensor& t) : tensor_(t) {
    const Geometry now(t);
    const int64_t bytes = t.numel() * t.element_size();
    if (now.dim == 1 && t.is_cpu() && t.is_contiguous() && bytes > 0 && bytes <= kMostCompared) {
      const auto* first = static_cast<const char*>(now.data);
      elements_.assign(first, first + bytes);
    }
    data_ = now.data;
    dtype_ = now.dtype;
    sizes_.assign(now.sizes, now.sizes + now.dim);
    strides_.assign(now.strides, now.strides + now.dim);
  }
  bool is_as_noted() const {
    const Geometry now(tensor_);
    return now.data == data_ && now.dtype == dtype_ && now.dim == static_cast<int64_t>(sizes_.size()) &&
           std::equal(sizes_.begin(), sizes_.end(), now.sizes) &&
           std::equal(strides_.begin(), strides_.end(), now.strides) &&
           std::memcmp(elements_.data(), now.data, elements_.size()) == 0;
  }

 private:
  Tensor tensor_;
  void* data_;
  int32_t dtype_;
  std::vector<int64_t> sizes_, strides_;
  std::vector<char> elements_;
};

using Note = std::vector<Noted>;

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

int64_t note_tensors_op(std::vector<Tensor> tensors) { return notes().add({tensors.begin(), tensors.end()}); }

}  // namespace

bool are_as_noted(int64_t note) {
  const auto noted = notes().find(note, "are_as_noted");
  return std::all_of(noted->begin(), noted->end(), [](const Noted& t) { return t.is_as_noted(); });
}

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
