#include "cuda/rows/quantised.cuh"

namespace megalite {

template void dequantised(const QuantisedParams<half>&, Stream);
template void dequantised(const QuantisedParams<bfloat16>&, Stream);
template void dequantised(const QuantisedParams<float>&, Stream);

}  // namespace megalite
