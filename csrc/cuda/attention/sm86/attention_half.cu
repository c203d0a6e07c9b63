// The kernels of small_blocks.cuh for half.
#include "cuda/attention/sm86/small_blocks.cuh"

namespace megalite {

template void attention_forward_sm86(const AttentionParams<half>&, Stream);
template int64_t attention_backward_scratch_sm86(const AttentionParams<half>&, bool);
template BackwardSchedule attention_backward_schedule_sm86(const AttentionParams<half>&, bool);
template void attention_backward_sm86(const AttentionParams<half>&, const AttentionGradients<half>&,
                                      Stream);

}  // namespace megalite
