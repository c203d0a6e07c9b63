// The kernels of small_blocks.cuh for bfloat16.
#include "cuda/attention/sm86/small_blocks.cuh"

namespace megalite {

template void attention_forward_sm86(const AttentionParams<bfloat16>&, Stream);
template int64_t attention_backward_scratch_sm86(const AttentionParams<bfloat16>&, bool);
template BackwardSchedule attention_backward_schedule_sm86(const AttentionParams<bfloat16>&, bool);
template void attention_backward_sm86(const AttentionParams<bfloat16>&,
                                      const AttentionGradients<bfloat16>&, Stream);

}  // namespace megalite
