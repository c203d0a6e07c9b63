// The kernels of forward.cuh for half.
#include "cuda/attention/sm80/forward.cuh"

namespace megalite {

template void attention_forward_sm80(const AttentionParams<half>&, Stream);

}  // namespace megalite
