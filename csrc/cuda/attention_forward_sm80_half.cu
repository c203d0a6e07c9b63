// The kernels of attention_forward_sm80.cuh for half.
#include "attention_forward_sm80.cuh"

namespace megalite {

template void attention_forward_sm80(const AttentionParams<half>&, Stream);

}  // namespace megalite
