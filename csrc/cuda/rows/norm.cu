#include "cuda/rows/norm.cuh"
#include "cuda/rows/norm_gradient.cuh"

namespace megalite {

template void add_norm(const NormParams<half>&, Stream);
template void add_norm(const NormParams<bfloat16>&, Stream);
template void add_norm(const NormParams<float>&, Stream);
template void add_norm_backward(const NormGradientParams<half>&, Stream);
template void add_norm_backward(const NormGradientParams<bfloat16>&, Stream);
template void add_norm_backward(const NormGradientParams<float>&, Stream);

}  // namespace megalite
