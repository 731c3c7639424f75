// Activations that every epilogue knows, in the order of the Python tuple pykernels.ops.ACTIVATIONS.
#pragma once

#include <cstdint>

namespace pk {

enum class Activation : int32_t { none, relu, leaky_relu, elu, sigmoid, tanh, silu, gelu, hardswish };

inline constexpr int kActivations = 9;

}  // namespace pk
