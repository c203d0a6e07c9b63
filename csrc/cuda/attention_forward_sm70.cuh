// Masked attention, forward, on sm_70: softmax(scale q k^T + bias) v over each row's interval.
//
// Shapes: attention_params.cuh. fp16; head_dim a multiple of 8 up to 256, run in the next of 32, 64,
//   96, 128, 192, 256 with zeros.
// Requires: q, k, v 16-byte aligned, their strides multiples of 8.
// Mapping: a block has kRows query rows of one head, a warp kWarpRows of them; the block walks over
//   the tiles of kKeys keys that its plan touches. A warp skips tiles that are empty for its own 32
//   rows and tests intervals only in partial ones. S stays in registers until it is P.
//   The next K is loaded into registers while S is computed, the next V during the softmax and P V;
//   each is written to shared memory behind the barrier that ends the reading of the tile before.
// Numerics: products in fp32 from fp16; P in [0, 1] rounded to fp16; the softmax's scale is folded
//   into exp2. Dropout's 1/(1-p) multiplies the output.
// Cost: 4 H flops a touched pair; K and V read once a block.
// Bound, of the tensor pipe, by the instructions of the loop over unmasked keys (benchmarks/sass.py):
//   D = 32 60%, 64 85%, 96 98% by issue slots; 128 89%, 192 76%, 256 64% by shared memory.
// Source: Dao 2023, arXiv:2307.08691, algorithm 1.
// Tested by: tests/kernels/test_attention.py on simt.
#pragma once

#include "attention_scores_sm70.cuh"
#include "attention_tiles.cuh"
#include "attention_warp_sm70.cuh"

namespace megalite::sm70 {

/// The tiles of the forward pass. Shared memory has Q, K and V, so two blocks (D <= 128) or one fit
/// in the 96 KB of an SM; registers have the output, S, and Q where there is room.
template <int D>
struct ForwardShape {
  static constexpr int kWarps = D <= 128 ? 4 : 8;
  static constexpr int kThreads = kWarps * kWarpSize;
  static constexpr int kBlocks = D <= 128 ? 2 : 1;  // of an SM
  static constexpr int kWarpRows = D <= 96 ? 32 : 16;
  static constexpr int kRows = kWarps * kWarpRows;
  static constexpr int kKeys = D == 256 ? 16 : 32;
  static constexpr bool kQueryInRegisters = D <= 64 || D == 128;
  static constexpr int kKeysAt = Tile<D>::bytes(kRows);  // bytes
  static constexpr int kValuesAt = kKeysAt + Tile<D>::bytes(kKeys);
  static constexpr int kBiasAt = kValuesAt + Tile<D>::bytes(kKeys);
  static constexpr int shared_bytes(bool has_bias) {
    return kBiasAt + (has_bias ? BiasTile<kRows, kKeys>::kBytes : 0);
  }
  static_assert(kBlocks * shared_bytes(true) <= 96 * 1024, "the blocks fit in an SM");
};

/// Multiply the sums of each row by its factor.
template <int kRows, int D>
MEGALITE_DEVICE void scale_rows(Sums<kRows, D>& sums, const RowValues<kRows>& factor) {
  MEGALITE_UNROLL
  for (int i = 0; i < kRows / kPiece; ++i) {
    MEGALITE_UNROLL
    for (auto& chunk : sums.o[i]) {
      MEGALITE_UNROLL
      for (auto& piece : chunk) {
        MEGALITE_UNROLL
        for (int e = 0; e < 8; ++e) piece[e] *= factor.of(i, e);
      }
    }
  }
}

template <int kRows>
MEGALITE_DEVICE bool is_one(const RowValues<kRows>& x) {
  bool result = true;
  MEGALITE_UNROLL
  for (const auto& row : x.v) result = result && row[0] == 1.0f && row[1] == 1.0f;
  return result;
}

/// The logarithms of the sums of exponentials; -inf in rows without keys.
template <int kRows>
MEGALITE_DEVICE void write_lse(const AttentionParams<half>& p, const Place& at,
                               const RowValues<kRows>& max, const RowValues<kRows>& total,
                               float factor) {
  if ((lane() & 10) != 0) return;  // one of the four lanes that share rows
  const int64_t first = (int64_t{at.batch} * p.heads + at.head) * p.queries;
  MEGALITE_UNROLL
  for (int i = 0; i < kRows / kPiece; ++i) {
    MEGALITE_UNROLL
    for (int r = 0; r < 2; ++r) {
      const int row = at.first_row + i * kPiece + c_row(2 * r);
      if (row >= p.queries) continue;
      const float lse = (max.v[i][r] * factor + log2_approx(total.v[i][r])) * kLn2;
      p.lse.store(first + row, total.v[i][r] == 0.0f ? -kInfinity : lse);
    }
  }
}

/// Write sums / total through the warp's rows of a tile.
template <int kRows, int D>
MEGALITE_DEVICE void write_out(const AttentionParams<half>& p, const Place& at,
                               Sums<kRows, D>& sums, const RowValues<kRows>& total,
                               const Tile<D>& tile) {
  RowValues<kRows> inverse;
  MEGALITE_UNROLL
  for (int i = 0; i < kRows / kPiece; ++i) {
    MEGALITE_UNROLL
    for (int r = 0; r < 2; ++r)
      inverse.v[i][r] = total.v[i][r] == 0.0f ? 0.0f : p.dropout.scale / total.v[i][r];
  }
  scale_rows(sums, inverse);
  syncwarp();  // the warp has read its rows of the tile
  store_sums(sums, tile, warp() * kRows);
  syncwarp();
  const RowsOut out = rows_out(p.out, p.queries, p.heads, p.head_dim, at.batch, at.head);
  copy_rows_out<kRows>(tile, warp() * kRows, out, at.first_row);
}

/// What a warp keeps while the keys go by.
template <int D, bool kHasBias, bool kDrops>
struct ForwardWarp {
  using Shape = ForwardShape<D>;
  static constexpr int kRows = Shape::kWarpRows, kKeys = Shape::kKeys;
  Place at;
  RowBounds bounds;
  // At D = 64 a bias or dropout needs the registers.
  static constexpr bool kQueryInRegisters =
      Shape::kQueryInRegisters && !(D == 64 && (kHasBias || kDrops));
  OperandRows<D, kRows, kQueryInRegisters> query;
  Sums<kRows, D> sums;
  RunningSoftmax<kRows> softmax;
  Product<kRows, kKeys> s;

  MEGALITE_DEVICE bool is_active(int first_key) const {
    return bounds.template touches<kKeys>(first_key);
  }

  /// Scores to dropped probabilities; earlier sums follow the maximum.
  MEGALITE_DEVICE void apply_softmax(const AttentionParams<half>& p, int first_key, float factor,
                                     const BiasTile<Shape::kRows, kKeys>& bias) {
    if constexpr (kHasBias) add_bias(s, p.scale * kLog2E, bias, warp() * kRows);
    if (!bounds.template covers<kKeys>(first_key)) mask_scores(s, p, at, first_key);
    const RowValues<kRows> shrink = softmax.exponentiate(s, factor);
    if (!all(is_one(shrink))) scale_rows(sums, shrink);
    if constexpr (kDrops) drop(s, keep_bits(p, at.batch, at.head), at.first_row, first_key);
  }
};

template <int D, bool kHasBias, bool kDrops>
MEGALITE_KERNEL(ForwardShape<D>::kThreads, ForwardShape<D>::kBlocks)
void attention_forward_kernel(AttentionParams<half> p) {
  using Shape = ForwardShape<D>;
  constexpr int kRows = Shape::kRows, kKeys = Shape::kKeys, kThreads = Shape::kThreads;
  const int batch = block_z(), head = block_y(), group = head / (p.heads / p.groups);
  const int first_row = (grid_x() - 1 - block_x()) * kRows;  // the longest rows of causal first
  const auto q = rows_of(p.q, p.q_strides, batch, head, p.head_dim);
  const auto k = rows_of(p.k, p.k_strides, batch, group, p.head_dim);
  const auto v = rows_of(p.v, p.v_strides, batch, group, p.head_dim);
  const auto query_tile = Tile<D>::at(0, kRows);
  const auto key_tile = Tile<D>::at(Shape::kKeysAt, kKeys);
  const auto value_tile = Tile<D>::at(Shape::kValuesAt, kKeys);
  const auto bias_tile = BiasTile<kRows, kKeys>::template at<kHasBias>(Shape::kBiasAt);
  const float factor = kHasBias ? 1.0f : p.scale * kLog2E;

  const RowBounds bounds = row_bounds<kRows>(p, batch, first_row);
  const Range tiles = bounds.template touched_tiles<kKeys>();
  const Range full = bounds.template full_tiles<kKeys>();
  TileCopy<D, kKeys, kThreads> copy;
  const auto fetch = [&](const RowsInGlobal& from, int tile) {
    copy.fetch(from, tile * kKeys,
               [&](int key) { return full.has(tile) || is_key_used(p, batch, key); });
  };

  copy_rows_in<kRows, kThreads>(q, first_row, query_tile,
                                [&](int row) { return !row_interval(p, batch, row).is_empty(); });
  ForwardWarp<D, kHasBias, kDrops> w;
  w.at = {batch, head, first_row + warp() * Shape::kWarpRows};
  w.bounds = row_bounds<kPlanTile>(p, batch, w.at.first_row / kPlanTile * kPlanTile);
  w.sums.clear();
  w.softmax.clear();
  if (tiles.first < tiles.last) {
    fetch(k, tiles.first);
    copy.store(key_tile);
    fetch(v, tiles.first);
  }
  syncthreads();
  w.query.load(query_tile, warp() * Shape::kWarpRows);
  if (tiles.first < tiles.last) copy.store(value_tile);
  if constexpr (kHasBias) bias_tile.fill(distance_bias(p, head), first_row, tiles.first * kKeys);

  for (int tile = tiles.first; tile < tiles.last; ++tile) {
    const bool is_active = w.is_active(tile * kKeys), is_last = tile + 1 == tiles.last;
    if (!is_last) fetch(k, tile + 1);
    if (is_active) multiply_transposed(w.s, w.query, key_tile);
    syncthreads();  // K has been read; V and the biases are there
    if (!is_last) {
      copy.store(key_tile);
      fetch(v, tile + 1);
    }
    if (is_active) {
      w.apply_softmax(p, tile * kKeys, factor, bias_tile);
      multiply_add(w.sums, w.s, value_tile);
    }
    if (is_last) break;
    syncthreads();  // V and the biases have been read; the next K is there
    copy.store(value_tile);
    if constexpr (kHasBias) bias_tile.fill(distance_bias(p, head), first_row, (tile + 1) * kKeys);
  }
  const RowValues<Shape::kWarpRows> total = w.softmax.total();
  write_out(p, w.at, w.sums, total, query_tile);
  write_lse(p, w.at, w.softmax.max, total, factor);
}

}  // namespace megalite::sm70
