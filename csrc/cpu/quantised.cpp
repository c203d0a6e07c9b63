// Quantised matrices on the CPU.
// Tested by: tests/kernels/test_dequantised.py.
#include "quantised.h"

#include <torch/library.h>

#include <algorithm>

#include "cpu/threads.h"

namespace megalite::cpu {
namespace {

using at::Tensor;

/// Elements [first, last) of a row, of one block: the products of all levels are made once.
void nf4_block(const uint8_t* codes, int64_t first, int64_t last, float scale, float* out) {
  float values[kNf4Levels];
  for (int code = 0; code < kNf4Levels; ++code) values[code] = nf4_level(code) * scale;
  for (int64_t i = first; i < last; ++i)
    out[i] = values[nf4_code(codes[i / 2], static_cast<int>(i % 2))];
}

Tensor dequantised(const Tensor& codes, const Tensor& scales, int64_t width, at::ScalarType dtype) {
  check_quantised(codes, scales, width, dtype);
  const Tensor from = codes.contiguous(), factors = scales.contiguous();
  const Tensor out = new_floats({codes.size(0), width});
  const int64_t bytes = codes.size(1), blocks = scales.size(1);
  const auto* pairs = static_cast<const uint8_t*>(from.data_ptr());
  const auto* numbers = static_cast<const int8_t*>(from.data_ptr());
  const float* scale = factors.data_ptr<float>();
  float* to = out.data_ptr<float>();
  each_row(codes.size(0), width, [&](int64_t row) {
    for (int64_t block = 0; block < blocks; ++block) {
      const int64_t first = block * kQuantisedBlock;
      const int64_t last = std::min(first + kQuantisedBlock, width);
      const float factor = scale[row * blocks + block];
      if (is_nf4(codes)) {
        nf4_block(pairs + row * bytes, first, last, factor, to + row * width);
      } else {
        for (int64_t i = first; i < last; ++i)
          to[row * width + i] = static_cast<float>(numbers[row * bytes + i]) * factor;
      }
    }
  });
  return out.to(dtype);
}

}  // namespace

TORCH_LIBRARY_IMPL(megalite, CPU, m) { m.impl("dequantised", dequantised); }

}  // namespace megalite::cpu
