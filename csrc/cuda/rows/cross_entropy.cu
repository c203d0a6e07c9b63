#include "cuda/rows/cross_entropy.cuh"

namespace megalite {

template void logit_statistics(const LogitParams<half>&, Stream);
template void logit_statistics(const LogitParams<bfloat16>&, Stream);
template void logit_statistics(const LogitParams<float>&, Stream);
template void logit_gradient(const LogitParams<half>&, Stream);
template void logit_gradient(const LogitParams<bfloat16>&, Stream);
template void logit_gradient(const LogitParams<float>&, Stream);

}  // namespace megalite
