#include "cuda/rows/activation.cuh"

namespace megalite {

template void activation(const ActivationParams<half>&, Stream);
template void activation(const ActivationParams<bfloat16>&, Stream);
template void activation(const ActivationParams<float>&, Stream);
template void activation_backward(const ActivationGradientParams<half>&, Stream);
template void activation_backward(const ActivationGradientParams<bfloat16>&, Stream);
template void activation_backward(const ActivationGradientParams<float>&, Stream);

}  // namespace megalite
