// Masked attention, backward, on sm_70: dq, and delta for the gradients of keys and values.
//
// Shapes: attention_params.cuh; sizes as in attention_forward_sm70.cuh.
// Requires: dout 16-byte aligned, its strides multiples of 8; lse and out of the forward pass.
// Mapping: as forward, a block has kRows query rows of one head and walks over their tiles of keys,
//   with Q and dO in shared memory. dP = dO V^T is first, so that V is free for the next tile while
//   S, dS and dQ use K.
// Numerics: P = exp2(score - lse) in fp32; dS = P (dP - delta) in fp32, rounded to fp16 for dS K.
//   Rows without keys have lse = inf here, so P = 0.
// Cost: 6 H flops a touched pair.
// Bound, of the tensor pipe, with the code of partial tiles counted: D = 32 78% by issue slots, 64 100%;
//   96 70%, 128 71%, 256 57% by shared memory: Q and dO are read from it, a row of 16 a warp.
// Source: Dao 2023, arXiv:2307.08691, algorithm 2, rows outside.
// Tested by: tests/kernels/test_attention.py on simt.
#pragma once

#include "attention_bias_gradient_sm70.cuh"
#include "attention_scores_sm70.cuh"

namespace megalite::sm70 {

/// The tiles of the gradient of queries. Shared memory has Q, dO, K and V.
template <int D>
struct QueryGradientShape {
  static constexpr int kWarps = D == 96 || D == 128 ? 8 : 4;
  static constexpr int kThreads = kWarps * kWarpSize;
  static constexpr int kBlocks = D <= 64 ? 2 : 1;  // of an SM
  static constexpr int kWarpRows = D <= 64 ? 32 : 16;
  static constexpr int kRows = kWarps * kWarpRows;
  static constexpr int kKeys = D >= 192 ? 16 : 32;
  static constexpr int kOutAt = Tile<D>::bytes(kRows);  // bytes
  static constexpr int kKeysAt = 2 * kOutAt;
  static constexpr int kValuesAt = kKeysAt + Tile<D>::bytes(kKeys);
  static constexpr int kBiasAt = kValuesAt + Tile<D>::bytes(kKeys);
  static constexpr int kDiagonalsAt = kBiasAt + BiasTile<kRows, kKeys>::kBytes;
  static constexpr int shared_bytes(bool has_bias) {
    return has_bias ? kDiagonalsAt + kWarps * kDiagonalBytes : kBiasAt;
  }
  static_assert(kBlocks * shared_bytes(true) <= 96 * 1024, "the blocks fit in an SM");
};

/// What the rows of a warp bring to the backward pass.
template <int kRows>
struct RowStatistics {
  RowValues<kRows> lse, delta;  // lse of base 2, inf in rows without keys

  /// Lane l computes row l % kRows, a part of its columns where lanes are left; shuffles deal out.
  template <int D>
  MEGALITE_DEVICE void load(const AttentionParams<half>& p, const AttentionGradients<half>& g,
                            const Place& at, const Tile<D>& dout) {
    const int local = lane() % kRows, row = at.first_row + local;
    const bool is_used = !row_interval(p, at.batch, row).is_empty();
    const int64_t i = (int64_t{at.batch} * p.heads + at.head) * p.queries + row;
    float sum = is_used ? dot<D>(p, at, dout, local, row) : 0.0f;
    if constexpr (kRows == 16) sum += shfl_xor(sum, 16);
    const float own_lse = is_used ? p.lse.load(i) * kLog2E : kInfinity;
    if (lane() < kRows && row < p.queries) g.delta.store(i, sum);
    MEGALITE_UNROLL
    for (int piece = 0; piece < kRows / kPiece; ++piece) {
      MEGALITE_UNROLL
      for (int r = 0; r < 2; ++r) {
        lse.v[piece][r] = shfl(own_lse, piece * kPiece + c_row(2 * r));
        delta.v[piece][r] = shfl(sum, piece * kPiece + c_row(2 * r));
      }
    }
  }

  /// This lane's part of the product of a row of dout, of the tile, and of out.
  template <int D>
  static MEGALITE_DEVICE float dot(const AttentionParams<half>& p, const Place& at,
                                   const Tile<D>& dout, int local, int row) {
    const RowsOut out = rows_out(p.out, p.queries, p.heads, p.head_dim, at.batch, at.head);
    float sum = 0.0f;
    for (int chunk = lane() / kRows; chunk * 8 < p.head_dim; chunk += kWarpSize / kRows) {
      const Vec<uint32_t, 4> a = dout.load(warp() * kRows + local, chunk);
      const Vec<uint32_t, 4> b = load_vec<4>(out.words, row * out.stride + chunk * 4);
      MEGALITE_UNROLL
      for (int w = 0; w < 4; ++w) {
        const Vec<float, 2> x = unpack2<half>(a.v[w]), y = unpack2<half>(b.v[w]);
        sum = fmaf(x.v[0], y.v[0], fmaf(x.v[1], y.v[1], sum));
      }
    }
    return sum;
  }
};

/// What a warp keeps while the keys go by.
template <int D, bool kHasBias, bool kDrops>
struct QueryGradientWarp {
  using Shape = QueryGradientShape<D>;
  static constexpr int kRows = Shape::kWarpRows, kKeys = Shape::kKeys;
  Place at;
  RowBounds bounds;
  OperandRows<D, kRows, false> query, dout;
  RowStatistics<kRows> statistics;
  Sums<kRows, D> dq;
  Product<kRows, kKeys> s, dp;

  MEGALITE_DEVICE bool is_active(int first_key) const {
    return bounds.template touches<kKeys>(first_key);
  }

  /// Scores in `s` and dP in `dp` become dS in `dp`.
  MEGALITE_DEVICE void differentiate(const AttentionParams<half>& p, int first_key, float factor,
                                     const BiasTile<Shape::kRows, kKeys>& bias) {
    if constexpr (kHasBias) add_bias(s, p.scale * kLog2E, bias, warp() * kRows);
    if (!bounds.template covers<kKeys>(first_key)) mask_scores(s, p, at, first_key);
    if constexpr (kDrops) drop(dp, keep_bits(p, at.batch, at.head), at.first_row, first_key);
    for_each_element<kRows, kKeys>([&](int i, int j, int e) {
      const float weight = exp2_approx(fmaf(s.c[i][j][e], factor, -statistics.lse.of(i, e)));
      const float upstream = kDrops ? dp.c[i][j][e] * p.dropout.scale : dp.c[i][j][e];
      dp.c[i][j][e] = weight * (upstream - statistics.delta.of(i, e));
    });
  }

  /// Write dq through the warp's rows of Q.
  MEGALITE_DEVICE void write(const AttentionParams<half>& p, const AttentionGradients<half>& g,
                             const Tile<D>& tile) {
    scale_sums(dq, p.scale);
    syncwarp();
    store_sums(dq, tile, warp() * kRows);
    syncwarp();
    const RowsOut out = rows_out(g.dq, p.queries, p.heads, p.head_dim, at.batch, at.head);
    copy_rows_out<kRows>(tile, warp() * kRows, out, at.first_row);
  }
};

template <int D, bool kHasBias, bool kDrops>
MEGALITE_KERNEL(QueryGradientShape<D>::kThreads, QueryGradientShape<D>::kBlocks)
void attention_query_gradient_kernel(AttentionParams<half> p, AttentionGradients<half> g) {
  using Shape = QueryGradientShape<D>;
  constexpr int kRows = Shape::kRows, kKeys = Shape::kKeys, kThreads = Shape::kThreads;
  const int batch = block_z(), head = block_y(), group = head / (p.heads / p.groups);
  const int first_row = (grid_x() - 1 - block_x()) * kRows;  // the longest rows of causal first
  const auto k = rows_of(p.k, p.k_strides, batch, group, p.head_dim);
  const auto v = rows_of(p.v, p.v_strides, batch, group, p.head_dim);
  const auto query_tile = Tile<D>::at(0, kRows);
  const auto dout_tile = Tile<D>::at(Shape::kOutAt, kRows);
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
  const auto is_used = [&](int row) { return !row_interval(p, batch, row).is_empty(); };
  copy_rows_in<kRows, kThreads>(rows_of(p.q, p.q_strides, batch, head, p.head_dim), first_row,
                                query_tile, is_used);
  copy_rows_in<kRows, kThreads>(rows_of(g.dout, g.dout_strides, batch, head, p.head_dim), first_row,
                                dout_tile, is_used);
  if (tiles.first < tiles.last) {
    fetch(v, tiles.first);
    copy.store(value_tile);
    fetch(k, tiles.first);
  }
  syncthreads();
  if (tiles.first < tiles.last) copy.store(key_tile);
  if constexpr (kHasBias) bias_tile.fill(distance_bias(p, head), first_row, tiles.first * kKeys);

  QueryGradientWarp<D, kHasBias, kDrops> w;
  w.at = {batch, head, first_row + warp() * Shape::kWarpRows};
  w.bounds = row_bounds<kPlanTile>(p, batch, w.at.first_row / kPlanTile * kPlanTile);
  w.query.load(query_tile, warp() * Shape::kWarpRows);
  w.dout.load(dout_tile, warp() * Shape::kWarpRows);
  w.statistics.load(p, g, w.at, dout_tile);
  w.dq.clear();
  DiagonalSums<Shape::kWarpRows, kKeys> diagonals;
  if constexpr (kHasBias) diagonals.begin(p, g, w.at, Shape::kDiagonalsAt, tiles.first);

  for (int tile = tiles.first; tile < tiles.last; ++tile) {
    const bool is_active = w.is_active(tile * kKeys), is_last = tile + 1 == tiles.last;
    if (!is_last) fetch(v, tile + 1);
    if (is_active) multiply_transposed(w.dp, w.dout, value_tile);
    syncthreads();  // V has been read; K and the biases are there
    if (!is_last) {
      copy.store(value_tile);
      fetch(k, tile + 1);
    }
    if (is_active) {
      multiply_transposed(w.s, w.query, key_tile);
      w.differentiate(p, tile * kKeys, factor, bias_tile);
      if constexpr (kHasBias) diagonals.add(w.dp);
      multiply_add(w.dq, w.dp, key_tile);
    }
    if constexpr (kHasBias) diagonals.advance();
    if (is_last) break;
    syncthreads();  // K and the biases have been read; the next V is there
    copy.store(key_tile);
    if constexpr (kHasBias) bias_tile.fill(distance_bias(p, head), first_row, (tile + 1) * kKeys);
  }
  if constexpr (kHasBias) diagonals.finish();
  w.write(p, g, query_tile);
}

}  // namespace megalite::sm70
