// The gradient of the bias by distance, inside attention's backward kernel on sm_80: sums of dS
// along diagonals, first within a warp, then over the block's warps, in a fixed order, then over the
// blocks, as integers.
//
// Tested by: tests/kernels/test_attention.py, on the emulator.
#pragma once

#include "cuda/attention/sm80/backward_block.cuh"

namespace megalite::sm80 {

/// Sum dS of a warp along each diagonal, in a fixed order, into the warp's part of shared memory.
///
/// Value [n][... + e] of lane (r, c) = (lane / 4, lane % 4) is at distance 8 diagonal + r - j with
/// j = 2 c + e. Rotated by j rows, lane r holds the value of distance 8 diagonal + r, or of 8 less
/// where the rotation wrapped around; then the four lanes of a row are summed.
template <class C>
MEGALITE_DEVICE void sum_diagonals(const BackwardBlock<C>& block, const WarpScores<C>& ds,
                                   int chunk) {
  // Index 0 of the warp's sums is distance -kSpan from its first row and key.
  constexpr int kSpan = C::kRows / C::kQueryWarps;
  const auto sums = block.diagonals().at(block.thread / kWarpSize * C::kDiagonals + kSpan -
                                         (chunk + 1) * C::kQueries);
  const int r = block.lane() / 4, c = block.lane() % 4;
  float stay = 0.0f;
  MEGALITE_UNROLL
  for (int diagonal = 2 * C::kMTiles - 1; diagonal >= -C::kNTiles; --diagonal) {
    float wrapped = 0.0f, here = 0.0f;
    MEGALITE_UNROLL
    for (int e = 0; e < 2; ++e) {
      float own = 0.0f;
      MEGALITE_UNROLL
      for (int i = 0; i < 2 * C::kMTiles; ++i) {
        const int n = i - diagonal;
        if (n >= 0 && n < C::kNTiles) own += ds[i / 2][n][i % 2 * 2 + e];
      }
      const int from = r + 2 * c + e;
      const float rotated = shfl(own, from % 8 * 4 + c);
      if (from < 8) {
        here += rotated;
      } else {
        wrapped += rotated;
      }
    }
    // `stay` wrapped around from the previous diagonal, whose distances are 8 larger.
    const float total = quad_sum(here + stay);
    stay = wrapped;
    if (c != 0) continue;
    // Add to the sums of the previous chunk where the two overlap.
    const int index = (diagonal + C::kNTiles) * 8 + r;
    const bool is_first = chunk == 0 || diagonal < 0;
    sums.store(index, is_first ? total : sums.load(index) + total);
  }
}

/// Add the sums of all warps to dbias, as integers (backward_units.cuh).
template <class C>
MEGALITE_DEVICE void add_bias_gradient(const BackwardBlock<C>& block, const RowTile& t) {
  const int64_t distances = int64_t{block.p.queries} + block.p.keys - 1;
  const Global<int64_t> total =
      block.g.scratch.at(block.w.dbias_at).template as<int64_t>().at(t.head * distances);
  const float unit = unit_of(block.g.scratch.load(block.w.steepest_at + t.head), kDistanceBits);
  const int first = block.first_key() - block.first_row(t) + block.p.queries - 1;
  for (int d = block.thread - C::kRows; d < C::kKeys; d += C::kThreads) {
    if (first + d < 0 || first + d >= distances) continue;
    float sum = 0.0f;
    for (int w = 0; w < C::kWarps; ++w) {
      const int key = w % C::kKeyWarps * 32;
      const int index = d - key + (w / C::kKeyWarps + 1) * (C::kRows / C::kQueryWarps);
      if (index >= 0 && index < C::kDiagonals)
        sum += block.diagonals().load(w * C::kDiagonals + index);
    }
    atomic_add(total, first + d, round_to_int64(sum * unit));
  }
}

}  // namespace megalite::sm80
