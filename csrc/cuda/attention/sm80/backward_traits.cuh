// The compile-time parameters of attention's backward pass on sm_80: tile sizes and the layout of
// shared memory.
#pragma once

#include "cuda/attention/tiles.cuh"

namespace megalite::sm80 {

/// How a backward kernel's warps are laid out over a tile of rows and one of keys.
struct BackwardLayout {
  int query_warps, key_warps;
  int stages;     // buffers of q and dout
  int row_warps;  // of dq's warps, along the rows; the others are along the columns
  int dq_passes;  // over the columns of dq
};

// A warp computes the scores of 32 keys and its share of the queries, and accumulates dk and dv of
// those keys for its share of the head dimension: at most 64 columns, as the two accumulators take 2
// registers per column and lane.

/// For blocks of 163 KiB of shared memory: sm_80, sm_90, sm_100.
constexpr BackwardLayout backward_layout(int dim) {
  return {dim > 128  ? 4
          : dim > 64 ? 2
                     : 1,
          dim > 128 ? 2 : 4, dim > 192 ? 1 : 2, dim == 96 ? 4 : 2, dim > 192 ? 2 : 1};
}

/// For blocks of 99 KiB: sm_86, sm_89, sm_120. Head dimensions up to 64 need no other layout; above
/// 192 none fits.
constexpr BackwardLayout small_backward_layout(int dim) {
  return {dim > 96 ? 4 : 2, dim > 128 ? 1 : 2, dim > 96 ? 1 : 2, 2, dim > 128 ? 2 : 1};
}

/// What a backward kernel is compiled for. kExtended adds bias and dropout; kSmall is for blocks of
/// 99 KiB.
template <class T_, int kDim_, bool kExtended_, bool kSmall>
struct BackwardTraitsOf {
  using T = T_;
  static constexpr int kDim = kDim_;
  static constexpr bool kExtended = kExtended_;
  static constexpr BackwardLayout kLayout =
      kSmall ? small_backward_layout(kDim) : backward_layout(kDim);

  static constexpr int kQueryWarps = kLayout.query_warps, kKeyWarps = kLayout.key_warps;
  static constexpr int kWarps = kQueryWarps * kKeyWarps, kThreads = kWarps * kWarpSize;
  static constexpr int kBlocksPerSm = kDim > 64 ? 1 : 2;
  static constexpr int kRows = 64, kKeys = 32 * kKeyWarps;
  static constexpr int kMTiles = 2;                       // fragments along a warp's keys
  static constexpr int kDTiles = kDim / kQueryWarps / 8;  // along its share of the head dimension
  static constexpr int kQueries = kQueryWarps > 2 || kExtended ? 16 : 32;  // of scores in registers
  static constexpr int kNTiles = kQueries / 8;
  static constexpr int kChunks = kRows / kQueryWarps / kQueries;
  // Unroll factor of the products for scores, along the head dimension: at H 64 and 128, and with
  // bias or dropout, loads hoisted ahead of their use cost too many registers.
  static constexpr int kUnrolledVectors = kDim > 192 || kDim == 128 || (kExtended && kDim % 64 == 0)
                                              ? 8
                                          : kDim == 64 ? 4
                                                       : kDim / 8;
  static constexpr int kStages = kLayout.stages;

  // dq [kRows, kDim]: kRowWarps warps along the rows, the others along the columns.
  static constexpr int kRowWarps = kLayout.row_warps;
  static constexpr int kRowMTiles = kRows / kRowWarps / 16;
  static constexpr int kColumnTiles = kDim / 8 / (kWarps / kRowWarps);
  static constexpr int kColumnsAtOnce = kColumnTiles / kLayout.dq_passes;

  // Gradient of the bias: sums along the diagonals of a warp's 32 keys and its share of the rows.
  static constexpr int kDiagonals = 32 + kRows / kQueryWarps;

  // Shared memory: sizes and offsets in bytes.
  static constexpr int kKeyBytes = kKeys * kDim * 2, kRowBytes = kRows * kDim * 2;
  static constexpr int kScoreBytes = kKeys * kRows * 2;
  static constexpr int kVAt = kKeyBytes, kQAt = 2 * kKeyBytes;
  static constexpr int kDoutAt = kQAt + kStages * kRowBytes;
  static constexpr int kDsAt = kDoutAt + kStages * kRowBytes;
  static constexpr int kPAt = kDsAt + kScoreBytes;
  static constexpr int kStatesAt = kPAt + (kQueryWarps > 1 ? kScoreBytes : 0);
  static constexpr int kDiagonalsAt = kStatesAt + kRows * 16;
  static constexpr int kSharedBytes = kDiagonalsAt;
  static constexpr int kDiagonalBytes = kWarps * kDiagonals * 4;
  static_assert(kSharedBytes + kDiagonalBytes <= (kSmall ? 99 : 163) * 1024, "a block's limit");
};

template <class T, int kDim, bool kExtended>
struct BackwardTraits : BackwardTraitsOf<T, kDim, kExtended, false> {};
template <class T, int kDim, bool kExtended>
struct SmallBackwardTraits : BackwardTraitsOf<T, kDim, kExtended, true> {};

}  // namespace megalite::sm80
