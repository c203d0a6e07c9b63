// The kernels of attention_forward_sm80.cuh for bfloat16.
#include "attention_forward_sm80.cuh"

namespace megalite {

template void attention_forward_sm80(const AttentionParams<bfloat16>&, Stream);

}  // namespace megalite
