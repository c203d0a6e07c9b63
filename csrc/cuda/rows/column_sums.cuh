// Sums of the columns of fp32 partial results: gradients of weights that all rows share.
//
// Shapes:    parts [P, D] fp32 -> out [D]; or two such pairs.
// Mapping:   a block sums kWarpSize columns: a lane has a column, a warp every kSumWarps-th part.
//            The second dimension of the grid is the pair.
// Numerics:  fp32, in an order that P alone decides; rounded once.
// Cost:      reads 4 P D bytes.
// Tested by: tests/kernels/test_norm.py.
#pragma once

#include "cuda/rows/params.cuh"

namespace megalite {

inline constexpr int kSumWarps = 16;  // each has few parts, so their latency is short

template <class T>
MEGALITE_KERNEL(kSumWarps* kWarpSize, 2)
void column_sums_kernel(ColumnSums<T> p) {
  const int column = block_x() * kWarpSize + lane();
  const Global<const float> parts = p.parts[block_y()];
  const Shared<float> sums = shared_view<float>(0, kSumWarps * kWarpSize);  // [warps, columns]
  float sum = 0.0f;
  if (column < p.width) {
    for (int64_t part = warp(); part < p.num_parts; part += kSumWarps) {
      sum += parts.load(part * p.width + column);
    }
  }
  sums.store(thread_x(), sum);
  syncthreads();
  if (warp() > 0 || column >= p.width) return;
  for (int w = 1; w < kSumWarps; ++w) sum += sums.load(w * kWarpSize + lane());
  p.out[block_y()].store(column, from_float<T>(sum));
}

template <class T>
void column_sums(const ColumnSums<T>& p, Stream stream) {
  constexpr int kThreads = kSumWarps * kWarpSize;
  if (p.width == 0) return;
  const uint32_t blocks = (p.width + kWarpSize - 1) / kWarpSize, pairs = p.parts[1] ? 2 : 1;
  launch(LaunchConfig{"column_sums",
                      {blocks, pairs},
                      {kThreads},
                      kThreads * static_cast<int>(sizeof(float)),
                      stream},
         column_sums_kernel<T>, p);
}

}  // namespace megalite
