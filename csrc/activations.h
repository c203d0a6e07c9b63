// The activations that all backends know, by the names of their config.
#pragma once

#include "host_device.h"

namespace megalite {

enum class Activation : int32_t { relu, gelu, gelu_tanh, silu };

}  // namespace megalite
