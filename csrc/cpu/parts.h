// What the CPU operators with weights share: tensors that may not be there, in fp32, and the sums
// of the parts of weights' gradients.
#pragma once

#include <optional>

#include "cpu/threads.h"

namespace megalite::cpu {

using MaybeTensor = std::optional<at::Tensor>;

inline constexpr int64_t kChunkRows = 64;  // of which a gradient adds up columns

inline at::Tensor floats(const at::Tensor& x) { return x.to(at::kFloat).contiguous(); }

inline MaybeTensor floats(const MaybeTensor& x) {
  return x ? MaybeTensor(floats(*x)) : MaybeTensor();
}

inline float* data_if(const at::Tensor& x) {
  return x.numel() == 0 ? nullptr : x.data_ptr<float>();
}

inline const float* data_if(const MaybeTensor& x) { return x ? x->data_ptr<float>() : nullptr; }

/// Sum of parts [P, D] over P, in the order of the parts.
inline at::Tensor sum_of_parts(const at::Tensor& parts, at::ScalarType type) {
  const int64_t count = parts.size(0), width = parts.size(1);
  at::Tensor total = at::zeros({width}, at::kFloat);
  const float* from = parts.data_ptr<float>();
  float* to = total.data_ptr<float>();
  each_range(width, count, [&](int64_t first, int64_t last) {
    for (int64_t part = 0; part < count; ++part)
      for (int64_t i = first; i < last; ++i) to[i] += from[part * width + i];
  });
  return total.to(type);
}

}  // namespace megalite::cpu
