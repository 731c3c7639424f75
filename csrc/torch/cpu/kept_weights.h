// Packed weights, kept by ops that receive a plain weight at every call.
#pragma once

#include <array>
#include <functional>

#include "torch/tensors.h"

namespace pk::binding {

// What a weight is packed for: whatever the result of packing depends on besides the weight's memory.
using PackedFor = std::array<int64_t, 4>;

// What `pack` makes of `weight`, or made of the same values when they lay in the same place before.
//
// Nothing of torch's sees every write to a tensor (through .data, a NumPy view, another library), and an op cannot ask
// its callers to tell. So a copy of a weight is kept beside what was packed, and the whole of it is compared at each
// call: that takes a tenth of what packing takes. A weight is kept when it comes for the second time unchanged; one
// that changes from call to call, as in training, costs a look at some of its values. kMostKept bounds the memory.
Tensor kept_or_packed(const Tensor& weight, const PackedFor& what, int64_t packed_bytes, const Executor& executor,
                      const std::function<Tensor()>& pack);

}  // namespace pk::binding
