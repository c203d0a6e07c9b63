#include "cuda/rows/dropout.cuh"

namespace megalite {

template void dropout(const DropoutParams<half>&, Stream);
template void dropout(const DropoutParams<bfloat16>&, Stream);
template void dropout(const DropoutParams<float>&, Stream);

}  // namespace megalite
