// Masked attention, backward, on sm_70: dq, and delta for the gradients of keys and values.
//
// Shapes: csrc/cuda/attention/params.cuh; sizes as in forward.cuh.
// Requires: dout 16-byte aligned, its strides multiples of 8; lse and out of the forward pass.
// Mapping: as in the forward pass, a block owns kRows query rows of one head and iterates over
//   their tiles of keys (query_block.cuh), with Q and dO in shared memory. V is first:
//   after dP = dO V^T its tile is free for the next one, while S, dS and dQ use K.
// Numerics: P = exp2(score - lse) in fp32; dS = P (dP - delta) in fp32, rounded to fp16 for dS K.
//   Rows without keys have lse = inf here, so P = 0.
// Cost: 6 H flops per touched pair.
// Share of the tensor cores' peak (benchmarks/sass.py): D = 32 98%, limited by issue slots; 64
//   100%; 96 70%, 128 71%, 192 56%, 256 57%, limited by shared memory, from which Q and dO are read
//   for 16 rows of a warp at a time.
// Source: Dao 2023, arXiv:2307.08691, algorithm 2, rows outside.
// Tested by: tests/kernels/test_attention.py on simt.
#pragma once

#include "cuda/attention/sm70/bias_gradient.cuh"
#include "cuda/attention/sm70/query_block.cuh"

namespace megalite::sm70 {

/// The tile sizes of the gradient of queries. Shared memory holds Q, dO, K and V.
template <int D>
struct QueryGradientShape {
  static constexpr int kDim = D;
  static constexpr int kWarps = D == 96 || D == 128 ? 8 : 4;
  static constexpr int kThreads = kWarps * kWarpSize;
  static constexpr int kBlocks = D <= 64 ? 2 : 1;  // per SM
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

/// What the backward pass needs of each row of a warp.
template <int kRows>
struct RowStatistics {
  RowValues<kRows> lse, delta;  // lse to base 2; inf in rows without keys

  /// Lane l computes those of row l % kRows (half of its columns if kRows is 16); shuffles
  /// distribute them.
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
    for (int fragment = 0; fragment < kRows / kMmaTile; ++fragment) {
      MEGALITE_UNROLL
      for (int r = 0; r < 2; ++r) {
        lse.v[fragment][r] = shfl(own_lse, fragment * kMmaTile + c_row(2 * r));
        delta.v[fragment][r] = shfl(sum, fragment * kMmaTile + c_row(2 * r));
      }
    }
  }

  /// This lane's part of the dot product of a row of dout, from the tile, and of out.
  template <int D>
  static MEGALITE_DEVICE float dot(const AttentionParams<half>& p, const Place& at,
                                   const Tile<D>& dout, int local, int row) {
    const Result result = {p.out, p.queries, p.heads, p.head_dim};
    const RowsOut out = result.rows_of(at);
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

/// What a warp holds in registers throughout the loop over tiles of keys.
template <int D, bool kHasBias, bool kDrops>
struct QueryGradientWarp : QueryWarp<QueryGradientShape<D>, kHasBias> {
  using Shape = QueryGradientShape<D>;
  using Base = QueryWarp<Shape, kHasBias>;
  using Base::at, Base::kKeys, Base::kRows, Base::s;
  OperandRows<D, kRows, false> query, dout;
  RowStatistics<kRows> statistics;
  Sums<kRows, D> dq;
  Product<kRows, kKeys> dp;
  DiagonalSums<kRows, kKeys> diagonals;  // of dS, with a bias

  /// dP = dO V^T.
  MEGALITE_DEVICE void multiply_first(const Tile<D>& value_tile) {
    multiply_transposed(dp, dout, value_tile);
  }

  /// S = Q K^T, dS from P and dP, and dQ += dS K.
  MEGALITE_DEVICE void multiply_second(const AttentionParams<half>& p, const Tile<D>& key_tile,
                                       const BiasTile<Shape::kRows, kKeys>& bias, int first_key) {
    multiply_transposed(s, query, key_tile);
    differentiate(p, bias, first_key);
    if constexpr (kHasBias) diagonals.add(dp);
    multiply_add(dq, dp, key_tile);
  }

  MEGALITE_DEVICE void advance() {
    if constexpr (kHasBias) diagonals.advance();
  }

 private:
  /// From the scores in `s` and dP in `dp` compute dS in `dp`.
  MEGALITE_DEVICE void differentiate(const AttentionParams<half>& p,
                                     const BiasTile<Shape::kRows, kKeys>& bias, int first_key) {
    this->finish_scores(p, first_key, bias);
    if constexpr (kDrops) drop(dp, keep_bits(p, at.batch, at.head), at.first_row, first_key);
    for_each_element<kRows, kKeys>([&](int i, int j, int e) {
      const float weight = exp2_approx(fmaf(s.c[i][j][e], this->factor, -statistics.lse.of(i, e)));
      const float upstream = kDrops ? dp.c[i][j][e] * p.dropout.scale : dp.c[i][j][e];
      dp.c[i][j][e] = weight * (upstream - statistics.delta.of(i, e));
    });
  }
};

template <int D, bool kHasBias, bool kDrops>
MEGALITE_KERNEL(QueryGradientShape<D>::kThreads, QueryGradientShape<D>::kBlocks)
void attention_query_gradient_kernel(AttentionParams<half> p, AttentionGradients<half> g) {
  if constexpr (MEGALITE_IS_FOR(70, 80)) {
    using Shape = QueryGradientShape<D>;
    QueryBlock<Shape, kHasBias> block(p);
    const auto query_tile = Tile<D>::at(0, Shape::kRows);
    const auto dout_tile = Tile<D>::at(Shape::kOutAt, Shape::kRows);
    block.load_rows(p, p.q, p.q_strides, query_tile);
    block.load_rows(p, g.dout, g.dout_strides, dout_tile);
    block.begin(p, block.v, block.k);
    QueryGradientWarp<D, kHasBias, kDrops> w;
    block.set_rows(p, w);
    w.query.load(query_tile, warp() * Shape::kWarpRows);
    w.dout.load(dout_tile, warp() * Shape::kWarpRows);
    w.statistics.load(p, g, w.at, dout_tile);
    w.dq.clear();
    if constexpr (kHasBias) w.diagonals.begin(p, g, w.at, Shape::kDiagonalsAt, block.tiles.first);
    block.each_tile(p, w, block.v, block.k);
    if constexpr (kHasBias) w.diagonals.finish();
    scale_sums(w.dq, p.scale);
    write_sums(w.dq, query_tile, {g.dq, p.queries, p.heads, p.head_dim}, w.at);
  }
}

}  // namespace megalite::sm70
