// Strides of the tensors that kernels take without a copy.
#pragma once

#include "host_device.h"

namespace megalite {

/// Strides of a tensor [B, S, heads, H] in elements; that of H is 1.
struct Strides {
  int64_t batch, row, head;
};

}  // namespace megalite
