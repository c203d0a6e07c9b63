// The kernels of backward.cuh for half.
#include "cuda/attention/sm80/backward.cuh"

namespace megalite {

template int64_t attention_backward_scratch_sm80(const AttentionParams<half>&, bool);
template BackwardSchedule attention_backward_schedule_sm80(const AttentionParams<half>&, bool);
template void attention_backward_sm80(const AttentionParams<half>&, const AttentionGradients<half>&,
                                      Stream);

}  // namespace megalite
