// Quantised matrices on the CUDA backend, and with MEGALITE_SIMT on the emulator: checks, memory and
// launches around the kernel of csrc/cuda/rows/quantised.cuh.
#include <torch/library.h>

#include "cuda/binding/optional.h"
#include "cuda/binding/tensors.h"
#include "cuda/rows/quantised.cuh"
#include "quantised.h"

namespace megalite {
namespace {

using at::Tensor;

Tensor dequantised_matrix(const Tensor& codes, const Tensor& scales, int64_t width,
                          at::ScalarType dtype) {
  check_quantised(codes, scales, width, dtype);
  const OnDevice guard("dequantised", "codes", codes);
  const Tensor from = aligned(codes), factors = scales.contiguous();
  const Tensor out = at::empty({codes.size(0), width}, codes.options().dtype(dtype));
  with_type(dtype, [&](auto type) {
    using T = decltype(type);
    QuantisedParams<T> p = {};
    p.rows = codes.size(0), p.width = static_cast<int>(width);
    p.row_bytes = static_cast<int>(codes.size(1)), p.row_blocks = static_cast<int>(scales.size(1));
    p.is_nf4 = is_nf4(codes);
    p.has_vectors = width % (16 / static_cast<int64_t>(sizeof(T))) == 0;
    p.codes = read<uint8_t>(from), p.scales = read<float>(factors), p.out = view<T>(out);
    dequantised(p, current_stream());
  });
  return out;
}

}  // namespace
}  // namespace megalite

MEGALITE_REGISTER(m) { m.impl("dequantised", megalite::dequantised_matrix); }
