// What the forward and the query-gradient kernel on sm_70 share: a block of query rows of one head
// that iterates over the tiles of keys that its rows touch.
//
// Mapping: K and V have one tile each in shared memory. For every tile of keys the block multiplies
//   by one of them first and by the other second. The next tile of the first is loaded into
//   registers before the first product and stored to shared memory after the barrier that follows
//   it; the next tile of the second likewise, around the second product. So global loads overlap
//   with products, without cp.async and without a second buffer.
// Source: Dao 2023, arXiv:2307.08691, algorithms 1 and 2, rows outside.
// Tested by: tests/kernels/test_attention.py on simt.
#pragma once

#include "cuda/attention/sm70/scores.cuh"

namespace megalite::sm70 {

/// K or V of a head: its rows in global memory, and a tile of them in shared memory.
template <int D>
struct KeyRows {
  RowsInGlobal rows;
  Tile<D> tile;
};

/// A warp of a QueryBlock and its query rows.
template <class Shape, bool kHasBias>
struct QueryWarp {
  static constexpr int kRows = Shape::kWarpRows, kKeys = Shape::kKeys;
  Place at;
  RowBounds bounds;
  float factor;             // of the scores in the argument of exp2
  Product<kRows, kKeys> s;  // scores of a tile of keys

  /// Whether one of the rows attends to one of the tile's keys.
  MEGALITE_DEVICE bool is_active(int first_key) const {
    return bounds.template touches<kKeys>(first_key);
  }

  /// Called after each tile of keys, active or not.
  MEGALITE_DEVICE void advance() {}

  /// Scale the scores and add the bias, if there is one; mask them in a partial tile.
  MEGALITE_DEVICE void finish_scores(const AttentionParams<half>& p, int first_key,
                                     const BiasTile<Shape::kRows, kKeys>& bias) {
    if constexpr (kHasBias) add_bias(s, p.scale * kLog2E, bias, warp() * kRows);
    if (!bounds.template covers<kKeys>(first_key)) mask_scores(s, p, at, first_key);
  }
};

/// A block of query rows of one head. Shape has kDim, kThreads, kRows, kWarpRows and kKeys, and the
/// byte offsets in shared memory of the tiles of K, V and biases: kKeysAt, kValuesAt and kBiasAt.
template <class Shape, bool kHasBias>
struct QueryBlock {
  static constexpr int D = Shape::kDim, kRows = Shape::kRows, kKeys = Shape::kKeys;
  int batch, head, first_row;
  KeyRows<D> k, v;
  BiasTile<kRows, kKeys> bias;
  Range tiles, full;  // tiles of keys that are not empty, and the full ones among them
  TileCopy<D, kKeys, Shape::kThreads> copy;

  MEGALITE_DEVICE explicit QueryBlock(const AttentionParams<half>& p)
      : batch(block_z()), head(block_y()) {
    const int group = head / (p.heads / p.groups);
    // Under a causal mask the last rows have the most keys: they are scheduled first.
    first_row = (grid_x() - 1 - block_x()) * kRows;
    k = {rows_of(p.k, p.k_strides, batch, group, p.head_dim), Tile<D>::at(Shape::kKeysAt, kKeys)};
    v = {rows_of(p.v, p.v_strides, batch, group, p.head_dim), Tile<D>::at(Shape::kValuesAt, kKeys)};
    bias = BiasTile<kRows, kKeys>::template at<kHasBias>(Shape::kBiasAt);
    const RowBounds bounds = row_bounds<kRows>(p, batch, first_row);
    tiles = bounds.template touched_tiles<kKeys>();
    full = bounds.template full_tiles<kKeys>();
  }

  /// Load the block's rows of q, or of a tensor of its shape; zeros where a row attends to nothing.
  MEGALITE_DEVICE void load_rows(const AttentionParams<half>& p, Global<const half> tensor,
                                 const Strides& strides, const Tile<D>& tile) const {
    copy_rows_in<kRows, Shape::kThreads>(
        rows_of(tensor, strides, batch, head, p.head_dim), first_row, tile,
        [&](int row) { return !row_interval(p, batch, row).is_empty(); });
  }

  /// Set the warp's rows and what depends on them.
  MEGALITE_DEVICE void set_rows(const AttentionParams<half>& p,
                                QueryWarp<Shape, kHasBias>& w) const {
    w.at = {batch, head, first_row + warp() * Shape::kWarpRows};
    w.bounds = row_bounds<kPlanTile>(p, batch, w.at.first_row / kPlanTile * kPlanTile);
    w.factor = kHasBias ? 1.0f : p.scale * kLog2E;
  }

  /// Load the first tiles. Contains a barrier: on return the tile of `first`, and whatever the
  /// block stored before the call, can be read.
  MEGALITE_DEVICE void begin(const AttentionParams<half>& p, const KeyRows<D>& first,
                             const KeyRows<D>& second) {
    if (tiles.first < tiles.last) {
      fetch(p, first, tiles.first);
      copy.store(first.tile);
      fetch(p, second, tiles.first);
    }
    syncthreads();
    if (tiles.first < tiles.last) copy.store(second.tile);
    fill_bias(p, tiles.first);
  }

  /// Iterate over the tiles of keys. For those that touch the warp's rows, w.multiply_first reads
  /// the tile of `first`, then w.multiply_second that of `second` and the biases.
  template <class Warp>
  MEGALITE_DEVICE void each_tile(const AttentionParams<half>& p, Warp& w, const KeyRows<D>& first,
                                 const KeyRows<D>& second) {
    for (int tile = tiles.first; tile < tiles.last; ++tile) {
      const bool is_active = w.is_active(tile * kKeys), is_last = tile + 1 == tiles.last;
      if (!is_last) fetch(p, first, tile + 1);
      if (is_active) w.multiply_first(first.tile);
      syncthreads();  // `first` has been read; `second` and the biases have been stored
      if (!is_last) {
        copy.store(first.tile);
        fetch(p, second, tile + 1);
      }
      if (is_active) w.multiply_second(p, second.tile, bias, tile * kKeys);
      w.advance();
      if (is_last) break;
      syncthreads();  // `second` and the biases have been read; the next `first` has been stored
      copy.store(second.tile);
      fill_bias(p, tile + 1);
    }
  }

 private:
  MEGALITE_DEVICE void fetch(const AttentionParams<half>& p, const KeyRows<D>& from, int tile) {
    const bool is_full = full.has(tile);
    copy.fetch(from.rows, tile * kKeys,
               [&](int key) { return is_full || is_key_used(p, batch, key); });
  }

  MEGALITE_DEVICE void fill_bias(const AttentionParams<half>& p, int tile) const {
    if constexpr (kHasBias) bias.fill(distance_bias(p, head), first_row, tile * kKeys);
  }
};

}  // namespace megalite::sm70
