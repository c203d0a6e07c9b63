// The kernels of attention_backward_sm80.cuh for half.
#include "attention_backward_sm80.cuh"

namespace megalite {

template int64_t attention_backward_scratch_sm80(const AttentionParams<half>&, bool);
template void attention_backward_sm80(const AttentionParams<half>&, const AttentionGradients<half>&,
                                      Stream);

}  // namespace megalite
