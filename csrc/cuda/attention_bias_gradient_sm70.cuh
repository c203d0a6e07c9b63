// Masked attention, backward, on sm_70: the gradient of a bias by distance, without atomics.
//
// Mapping: a warp adds the dS of its rows along each distance key - query while the keys go by, and
//   writes a slice of sums by distance; bias_gradient_kernel adds the slices of a head in a fixed
//   order. Of a tile of kRows x kKeys there are kRows + kKeys - 1 distances: lane l keeps numbers l
//   and l + 32. A step of kKeys keys finishes the first kKeys of them, which are written once; the
//   others move down. Pieces of 16 x 16 go through 8 x 16 words of shared memory a warp, half of the
//   rows at a time; a lane reads down its diagonal, so the lanes of a warp read consecutive words.
// Numerics: fp32 sums.
// Cost: scratch of B N ceil(Sq / kRows) (Sk + 64) fp32, written and read once.
// Tested by: tests/kernels/test_attention.py on simt.
#pragma once

#include "attention_scores_sm70.cuh"

namespace megalite::sm70 {

constexpr int kDiagonalBytes = 8 * kPiece * 4;  // of shared memory a warp

/// Number of sums by distance that a warp writes: those of the keys rounded up, and of its rows.
MEGALITE_HOST_DEVICE int slice_size(int keys) { return divide_up(keys, 32) * 32 + 32; }

/// The slices of all warps, each of kRows query rows: [B, N, ceil(Sq / kRows), slice_size].
MEGALITE_HOST_DEVICE int64_t slice_of(const AttentionParams<half>& p, int kRows, int batch,
                                      int head, int first_row) {
  const int slices = divide_up(p.queries, kRows);
  const int64_t row = int64_t{batch} * p.heads + head;
  return (row * slices + first_row / kRows) * slice_size(p.keys);
}

template <int kRows, int kKeys>
struct DiagonalSums {
  static constexpr int kDifferences = kRows / kPiece + kKeys / kPiece - 1;  // of piece numbers
  static_assert(kRows <= 32 && kKeys <= 32, "two distances a lane");
  float sum[2];  // of distances `lane` and `lane + 32` from that of the last row and first key
  Shared<float> words;
  Global<float> slice;
  int next;  // first of the slice that is not yet written
  bool is_written;

  MEGALITE_DEVICE void begin(const AttentionParams<half>& p, const AttentionGradients<half>& g,
                             const Place& at, int byte_offset, int first_tile) {
    words = shared_view<float>(byte_offset + warp() * kDiagonalBytes, kDiagonalBytes / 4);
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
    for (int n = 0; n < kDifferences; ++n) {
      const int difference = n - (kRows / kPiece - 1);  // j - i
      float piece[8] = {};
      MEGALITE_UNROLL
      for (int i = 0; i < kRows / kPiece; ++i) {
        const int j = i + difference;
        if (j < 0 || j >= kKeys / kPiece) continue;
        MEGALITE_UNROLL
        for (int e = 0; e < 8; ++e) piece[e] += ds.c[i][j][e];
      }
      add_piece(piece, n * kPiece);
    }
  }

  /// Add the diagonals of a piece, of which the first has number `first`.
  MEGALITE_DEVICE void add_piece(const float (&piece)[8], int first) {
    const int diagonal = (lane() - first) & 31, shift = diagonal - (kPiece - 1);
    float total = 0.0f;
    MEGALITE_UNROLL
    for (int r = 0; r < 2; ++r) {  // rows whose bit 1 is r
      syncwarp();
      const int row = (lane() & 1) + (lane() & 4) / 2 + (lane() & 16) / 4;
      MEGALITE_UNROLL
      for (int e = 0; e < 8; e += 4) {
        const Vec<float, 2> pair = {{piece[e + 2 * r], piece[e + 2 * r + 1]}};
        store_vec(words, word(row, c_column(e)), pair);
      }
      syncwarp();
      MEGALITE_UNROLL
      for (int i = 0; i < 8; ++i) {
        const int column = i % 2 + i / 2 * 4 + 2 * r + shift;
        if (0 <= column && column < kPiece) total += words.load(word(i, column));
      }
    }
    (first + diagonal < 32 ? sum[0] : sum[1]) += total;
  }

  /// Where column `column` of the i-th row of a half is: pairs of rows change places by 4 columns.
  static MEGALITE_DEVICE int word(int i, int column) { return i * kPiece + (column ^ (i & 2) * 2); }

  /// Go on to the next tile of keys: the first kKeys distances are complete.
  MEGALITE_DEVICE void advance() {
    if (is_written && lane() < kKeys) slice.store(next + lane(), sum[0]);
    next += kKeys;
    const float above = shfl_down(sum[0], 16);
    sum[0] = kKeys == 32 ? sum[1] : lane() < 16 ? above : 0.0f;
    sum[1] = 0.0f;
  }

  MEGALITE_DEVICE void finish() {
    if (is_written) slice.store(next + lane(), sum[0]);
  }
};

/// dbias[n, x]: the sum of the slices of head n at distance x. One thread a distance.
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
