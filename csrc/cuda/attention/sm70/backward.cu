// Masked attention, backward, on sm_70: the launches.
//
// Order: a query-stationary kernel for dq and delta, then a key-stationary one for dk and dv, then
//   the reduction of dbias. Every sum is owned by one thread and has a fixed order, so the bits do
//   not depend on the schedule; no atomics.
// Why two passes: S and dP are computed twice, 7 products of 2 H flops per touched pair instead of
//   5. One pass over blocks of 128 keys would need partial sums of dq in fp32, read and written
//   once per block: 8 H bytes per 128 pairs, that is per 1280 H flops, which an SM's tensor cores
//   do in 1.25 H cycles (1024 flops each). An SM's share of HBM is 900 GB/s / (80 * 1.53 GHz) = 7.4
//   bytes per cycle, so the partial sums take 1.09 H cycles of it, 7/8 of the tensor time, if they
//   don't stay in L2 (at 4 B N Sq H bytes for each split they don't), and the inner loop would wait
//   for memory; the second S and dP take 0.5 H cycles and no memory.
// Source: Dao 2023, arXiv:2307.08691, algorithm 2.
// Tested by: tests/kernels/test_attention.py on simt.
#include "cuda/attention/sm70/choice.cuh"
#include "cuda/attention/sm70/key_gradient.cuh"
#include "cuda/attention/sm70/query_gradient.cuh"

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
  const Dim3 grid{static_cast<uint32_t>(p.groups * kTogether), static_cast<uint32_t>(p.batch),
                  static_cast<uint32_t>(divide_up(p.keys, Shape::kRows * kTogether))};
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

/// The workspace holds the slices of dbias.
int64_t attention_backward_scratch_sm70(const AttentionParams<half>& params, bool has_bias) {
  int64_t size = 0;
  sm70::select(params, [&](auto choice) {
    constexpr int kRows = sm70::QueryGradientShape<decltype(choice)::kHeadDim>::kWarpRows;
    size = sm70::slice_of(params, kRows, params.batch, 0, 0);
  });
  return has_bias ? size : 0;
}

/// Writes dq, dk, dv and, where it is not null, dbias; uses delta and scratch as workspace.
void attention_backward_sm70(const AttentionParams<half>& params,
                             const AttentionGradients<half>& gradients, Stream stream) {
  sm70::select(params, [&](auto choice) {
    using Choice = decltype(choice);
    sm70::launch_backward<Choice::kHeadDim, Choice::kHasBias, Choice::kDrops>(params, gradients,
                                                                              stream);
  });
}

}  // namespace megalite
