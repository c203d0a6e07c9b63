// Checks of a quantised matrix's tensors, with the same messages on every backend.
#pragma once

#include "checks.h"
#include "levels.h"

namespace megalite {

inline bool is_nf4(const at::Tensor& codes) { return codes.scalar_type() == at::kByte; }

inline void check_quantised(const at::Tensor& codes, const at::Tensor& scales, int64_t width,
                            at::ScalarType dtype) {
  TORCH_CHECK(codes.dim() == 2 && (is_nf4(codes) || codes.scalar_type() == at::kChar),
              "dequantised codes: must be uint8 (NF4) or int8, of two dimensions, came ",
              codes.scalar_type(), " ", codes.sizes());
  const int64_t bytes = is_nf4(codes) ? (width + 1) / 2 : width;
  TORCH_CHECK(width > 0 && codes.size(1) == bytes, "dequantised codes: must have rows of ", bytes,
              " bytes for a width of ", width, ", came ", codes.sizes());
  const int64_t blocks = (width + kQuantisedBlock - 1) / kQuantisedBlock;
  TORCH_CHECK(scales.scalar_type() == at::kFloat && scales.dim() == 2 &&
                  scales.size(0) == codes.size(0) && scales.size(1) == blocks,
              "dequantised scales: must be float32 [", codes.size(0), ", ", blocks, "], came ",
              scales.scalar_type(), " ", scales.sizes());
  check_device("dequantised", "scales", scales, codes.device());
  TORCH_CHECK(dtype == at::kFloat || is_narrow(dtype),
              "dequantised dtype: must be float32, bfloat16 or float16, came ", dtype);
}

}  // namespace megalite
