// The kernels of backward.cuh for bfloat16.
#include "cuda/attention/sm80/backward.cuh"

namespace megalite {

template int64_t attention_backward_scratch_sm80(const AttentionParams<bfloat16>&, bool);
template BackwardSchedule attention_backward_schedule_sm80(const AttentionParams<bfloat16>&, bool);
template void attention_backward_sm80(const AttentionParams<bfloat16>&,
                                      const AttentionGradients<bfloat16>&, Stream);

}  // namespace megalite
