// The kernels of forward.cuh for bfloat16.
#include "cuda/attention/sm80/forward.cuh"

namespace megalite {

template void attention_forward_sm80(const AttentionParams<bfloat16>&, Stream);

}  // namespace megalite
