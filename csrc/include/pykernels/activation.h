// Activations that every epilogue knows, in the order of the Python tuple pykernels.ops.ACTIVATIONS.
#pragma once

#include <cstdint>

namespace pk {

enum class Activation : int32_t { none, relu, leaky_relu, elu, sigmoid, tanh, silu, gelu, hardswish };

inline constexpr int kActivations = static_cast<int>(Activation::hardswish) + 1;  // after the last

}  // namespace pk
