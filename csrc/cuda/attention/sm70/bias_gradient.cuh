// Masked attention, backward, on sm_70: the gradient of a bias by distance, without atomics.
//
// Mapping: over its loop along the keys, a warp sums the dS of its rows by distance key - query and
//   writes the sums as a slice; attention_bias_gradient_kernel adds the slices of a head in a fixed
//   order. A tile of kRows x kKeys has kRows + kKeys - 1 distances: lane l holds the sums of number
//   l and l + 32. After a tile the first kKeys sums are complete and are written; the others move
//   down by kKeys. A warp transposes its 16 x 16 fragments through shared memory, 8 rows at a time,
//   and each lane reads along a diagonal, so that the lanes of a warp read consecutive words.
// Numerics: fp32 sums.
// Cost: a workspace of B N ceil(Sq / kRows) (Sk + 64) fp32, written and read once.
// Tested by: tests/kernels/test_attention.py on simt.
#pragma once

#include "cuda/attention/sm70/scores.cuh"

namespace megalite::sm70 {

constexpr int kDiagonalBytes = 8 * kMmaTile * 4;  // of shared memory per warp

/// Sums in the slice of a warp: one per key, rounded up to whole tiles, and one per row.
MEGALITE_HOST_DEVICE int slice_size(int keys) { return divide_up(keys, 32) * 32 + 32; }

/// The offset of a slice in the workspace [B, N, ceil(Sq / kRows), slice_size]; a slice is that of
/// kRows query rows.
MEGALITE_HOST_DEVICE int64_t slice_of(const AttentionParams<half>& p, int kRows, int batch,
                                      int head, int first_row) {
  const int slices = divide_up(p.queries, kRows);
  const int64_t row = int64_t{batch} * p.heads + head;
  return (row * slices + first_row / kRows) * slice_size(p.keys);
}

template <int kRows, int kKeys>
struct DiagonalSums {
  static constexpr int kDiagonals = kRows / kMmaTile + kKeys / kMmaTile - 1;  // of fragments
  static_assert(kRows <= 32 && kKeys <= 32, "two distances per lane");
  float sum[2];  // of distance numbers lane and lane + 32; number 0 is the last row and first key
  Shared<float> half_fragment;  // [8, 16], see position
  Global<float> slice;
  int next;  // index in the slice of the next sum to write
  bool is_written;

  MEGALITE_DEVICE void begin(const AttentionParams<half>& p, const AttentionGradients<half>& g,
                             const Place& at, int byte_offset, int first_tile) {
    half_fragment = shared_view<float>(byte_offset + warp() * kDiagonalBytes, kDiagonalBytes / 4);
    is_written = g.dbias && at.first_row < p.queries;
    sum[0] = sum[1] = 0.0f;
    next = first_tile * kKeys;
    if (!is_written) return;
    slice = g.scratch.at(slice_of(p, kRows, at.batch, at.head, at.first_row));
    for (int i = lane(); i < slice_size(p.keys); i += kWarpSize) slice.store(i, 0.0f);
    syncwarp();
  }

  /// Add a tile's dS.
  MEGALITE_DEVICE void add(const Product<kRows, kKeys>& ds) {
    MEGALITE_UNROLL
    for (int n = 0; n < kDiagonals; ++n) {
      const int difference = n - (kRows / kMmaTile - 1);  // j - i
      float fragment[8] = {};
      MEGALITE_UNROLL
      for (int i = 0; i < kRows / kMmaTile; ++i) {
        const int j = i + difference;
        if (j < 0 || j >= kKeys / kMmaTile) continue;
        MEGALITE_UNROLL
        for (int e = 0; e < 8; ++e) fragment[e] += ds.c[i][j][e];
      }
      add_fragment(fragment, n * kMmaTile);
    }
  }

  /// Add the diagonals of a fragment; its first has distance number `first`.
  MEGALITE_DEVICE void add_fragment(const float (&fragment)[8], int first) {
    const int diagonal = (lane() - first) & 31, shift = diagonal - (kMmaTile - 1);
    float total = 0.0f;
    MEGALITE_UNROLL
    for (int r = 0; r < 2; ++r) {  // rows whose bit 1 is r
      syncwarp();
      const int row = (lane() & 1) + (lane() & 4) / 2 + (lane() & 16) / 4;
      MEGALITE_UNROLL
      for (int e = 0; e < 8; e += 4) {
        const Vec<float, 2> pair = {{fragment[e + 2 * r], fragment[e + 2 * r + 1]}};
        store_vec(half_fragment, position(row, c_column(e)), pair);
      }
      syncwarp();
      MEGALITE_UNROLL
      for (int i = 0; i < 8; ++i) {
        const int column = i % 2 + i / 2 * 4 + 2 * r + shift;
        if (0 <= column && column < kMmaTile) total += half_fragment.load(position(i, column));
      }
    }
    (first + diagonal < 32 ? sum[0] : sum[1]) += total;
  }

  /// The index of (row i, column): every other pair of rows is swizzled by 4 columns.
  static MEGALITE_DEVICE int position(int i, int column) {
    return i * kMmaTile + (column ^ (i & 2) * 2);
  }

  /// Advance to the next tile of keys: write the first kKeys sums, which are complete.
  MEGALITE_DEVICE void advance() {
    if (lane() < kKeys && is_written) slice.store(next + lane(), sum[0]);
    next += kKeys;
    const float above = shfl_down(sum[0], 16);
    sum[0] = kKeys == 32 ? sum[1] : lane() < 16 ? above : 0.0f;
    sum[1] = 0.0f;
  }

  MEGALITE_DEVICE void finish() {
    if (is_written) slice.store(next + lane(), sum[0]);
  }
};

/// dbias[n, x]: the sum of the slices of head n at distance x. One thread per distance.
MEGALITE_KERNEL(256, 4)
void attention_bias_gradient_kernel(AttentionParams<half> p, AttentionGradients<half> g,
                                    int rows_of_slice) {
  const int head = block_y(), distances = p.queries + p.keys - 1;
  const int x = block_x() * block_dim_x() + thread_x();
  if (x >= distances) return;
  float sum = 0.0f;
  for (int batch = 0; batch < p.batch; ++batch) {
    for (int row = 0; row < p.queries; row += rows_of_slice) {
      const int i = x - (p.queries - 1) + row + rows_of_slice - 1;
      if (i < 0 || i >= slice_size(p.keys)) continue;
      sum += g.scratch.load(slice_of(p, rows_of_slice, batch, head, row) + i);
    }
  }
  g.dbias.store(int64_t{head} * distances + x, sum);
}

}  // namespace megalite::sm70
