// Masked attention, backward, on sm_70: the launches.
//
// Order: queries outside for dq and delta, keys outside for dk and dv, slices for dbias. Every sum
//   has one owner and one order, so the bits do not depend on the schedule; no atomics.
// Why two passes: S and dP are computed twice, 7 products of 2 H flops a touched pair instead of 5.
//   In one pass over blocks of 128 keys, dq would be split into copies of fp32 that are read and
//   written once a block: 8 H bytes for 128 pairs, that is for 1280 H flops, which an SM's tensor
//   cores do in 1.25 H cycles (1024 flops each). An SM's share of HBM is 900 GB/s / (80 * 1.53 GHz)
//   = 7.4 bytes a cycle, so the copies take 1.09 H cycles of it, 7/8 of the tensor time, when they
//   leave L2 - which 4 B N Sq H bytes for each of the copies in flight do - and wait for memory in
//   the inner loop; the second S and dP take 0.5 H cycles and no memory.
// Source: Dao 2023, arXiv:2307.08691, algorithm 2.
// Tested by: tests/kernels/test_attention.py on simt.
#include "attention_choice_sm70.cuh"
#include "attention_key_gradient_sm70.cuh"
#include "attention_query_gradient_sm70.cuh"

namespace megalite {
namespace sm70 {

template <int D, bool kHasBias, bool kDrops>
void launch_query_gradient(const AttentionParams<half>& p, const AttentionGradients<half>& g,
                           Stream stream) {
  using Shape = QueryGradientShape<D>;
  const Dim3 grid{static_cast<uint32_t>(divide_up(p.queries, Shape::kRows)),
                  static_cast<uint32_t>(p.heads), static_cast<uint32_t>(p.batch)};
  launch(LaunchConfig{"attention_query_gradient_sm70",
                      grid,
                      {Shape::kThreads},
                      Shape::shared_bytes(kHasBias),
                      stream},
         attention_query_gradient_kernel<D, kHasBias, kDrops>, p, g);
  if (!kHasBias || !g.dbias) return;
  constexpr int kThreads = 256;
  const Dim3 distances{static_cast<uint32_t>(divide_up(p.queries + p.keys - 1, kThreads)),
                       static_cast<uint32_t>(p.heads)};
  launch(LaunchConfig{"attention_bias_gradient_sm70", distances, {kThreads}, 0, stream},
         attention_bias_gradient_kernel, p, g, Shape::kWarpRows);
}

template <int D, bool kHasBias, bool kDrops, bool kWantsKey, bool kWantsValue>
void launch_key_gradient(const AttentionParams<half>& p, const AttentionGradients<half>& g,
                         Stream stream) {
  using Shape = KeyGradientShape<D>;
  const Dim3 grid{static_cast<uint32_t>(divide_up(p.keys, Shape::kRows)),
                  static_cast<uint32_t>(p.groups), static_cast<uint32_t>(p.batch)};
  launch(LaunchConfig{"attention_key_gradient_sm70",
                      grid,
                      {Shape::kThreads},
                      Shape::shared_bytes(kHasBias),
                      stream},
         attention_key_gradient_kernel<D, kHasBias, kDrops, kWantsKey, kWantsValue>, p, g);
}

template <int D, bool kHasBias, bool kDrops>
void launch_backward(const AttentionParams<half>& p, const AttentionGradients<half>& g,
                     Stream stream) {
  launch_query_gradient<D, kHasBias, kDrops>(p, g, stream);
  if constexpr (KeyGradientShape<D>::kIsSplit) {
    launch_key_gradient<D, kHasBias, kDrops, false, true>(p, g, stream);
    launch_key_gradient<D, kHasBias, kDrops, true, false>(p, g, stream);
  } else {
    launch_key_gradient<D, kHasBias, kDrops, true, true>(p, g, stream);
  }
}

}  // namespace sm70

/// Elements of scratch: the slices of the gradient of a bias.
int64_t attention_backward_scratch_sm70(const AttentionParams<half>& params, bool has_bias) {
  int64_t size = 0;
  sm70::select(params, [&](auto choice) {
    constexpr int kRows = sm70::QueryGradientShape<decltype(choice)::kHeadDim>::kWarpRows;
    size = sm70::slice_of(params, kRows, params.batch, 0, 0);
  });
  return has_bias ? size : 0;
}

/// dq, dk, dv and, where it is not null, dbias; uses delta and scratch.
void attention_backward_sm70(const AttentionParams<half>& params,
                             const AttentionGradients<half>& gradients, Stream stream) {
  sm70::select(params, [&](auto choice) {
    using Choice = decltype(choice);
    sm70::launch_backward<Choice::kHeadDim, Choice::kHasBias, Choice::kDrops>(params, gradients,
                                                                              stream);
  });
}

}  // namespace megalite
