// The launches of sm_80's attention kernels with smaller tiles, for GPUs whose blocks have 99 KiB of
// shared memory: sm_86, sm_89, sm_120. Only what doesn't fit there with sm_80's own tiles is here:
// forward above H 192, backward above H 64. Backward above H 192 fits with none.
//
// Shared memory of a block, KiB: forward H 256 97; backward H 96 89 to 90, H 128 81 to 82.5, H 192 81
//   to 82.
// Numerics: as in sm80/; the tiles are others, so the bits are too.
// Tested by: tests/kernels/test_attention_memory.py, on the emulator with 99 KiB.
#pragma once

#include "cuda/attention/sm80/backward.cuh"
#include "cuda/attention/sm80/forward.cuh"

#ifndef __CUDACC_RTC__
namespace megalite {
namespace sm80 {

/// Call f with the traits of the kernel that runs; H is above 64 and at most 192.
template <class T, class F>
auto with_small_backward_traits(const AttentionParams<T>& p, F f) {
  if (p.head_dim <= 96) return with_extras<SmallBackwardTraits, 96>(p, f);
  if (p.head_dim <= 128) return with_extras<SmallBackwardTraits, 128>(p, f);
  return with_extras<SmallBackwardTraits, 192>(p, f);
}

}  // namespace sm80

template <class T>
void attention_forward_sm86(const AttentionParams<T>& params, Stream stream) {
  sm80::launch_attention_forward<sm80::SmallForwardTraits, 256>(params, stream);
}

template <class T>
int64_t attention_backward_scratch_sm86(const AttentionParams<T>& params, bool has_bias) {
  return sm80::with_small_backward_traits(params, [&](auto traits) {
    return sm80::backward_work<decltype(traits)>(params, has_bias).size;
  });
}

template <class T>
BackwardSchedule attention_backward_schedule_sm86(const AttentionParams<T>& params, bool has_bias) {
  return sm80::with_small_backward_traits(params, [&](auto traits) {
    return sm80::backward_schedule<decltype(traits)>(params, has_bias);
  });
}

template <class T>
void attention_backward_sm86(const AttentionParams<T>& params,
                             const AttentionGradients<T>& gradients, Stream stream) {
  sm80::with_small_backward_traits(params, [&](auto traits) {
    sm80::launch_attention_backward<decltype(traits)>(params, gradients, stream);
  });
}

}  // namespace megalite
#endif
