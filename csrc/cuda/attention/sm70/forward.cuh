// Masked attention, forward, on sm_70: softmax(scale q k^T + bias) v over each row's interval.
//
// Shapes: csrc/cuda/attention/params.cuh. fp16; head_dim a multiple of 8 up to 256; the kernel of
//   the next D of 32, 64, 96, 128, 192, 256 runs, with zeros in the columns from head_dim on.
// Requires: q, k, v 16-byte aligned, their strides multiples of 8.
// Mapping: a block owns kRows query rows of one head, a warp kWarpRows of them; the block iterates
//   over the tiles of kKeys keys that its rows touch (query_block.cuh), K first and V second. A
//   warp skips tiles that are empty for its own rows and tests intervals only in partial ones. S
//   becomes P in registers.
// Numerics: fp16 products with fp32 sums; P in [0, 1] is rounded to fp16; scale * log2(e) is folded
//   into exp2. Dropout's 1/(1-p) multiplies the output.
// Cost: 4 H flops per touched pair; K and V are read once per block.
// Share of the tensor cores' peak, by the instructions of the loop over full tiles
//   (benchmarks/sass.py): D = 32 60%, 64 85%, 96 98%, limited by issue slots; 128 89%, 192 76%,
//   256 64%, limited by shared memory.
// Source: Dao 2023, arXiv:2307.08691, algorithm 1.
// Tested by: tests/kernels/test_attention.py on simt.
#pragma once

#include "cuda/attention/sm70/query_block.cuh"

namespace megalite::sm70 {

/// The tile sizes of the forward pass. Shared memory holds Q, K and V, so that two blocks, or one
/// from D = 192 on, fit in the 96 KB of an SM; registers hold the output, S, and Q where it fits.
template <int D>
struct ForwardShape {
  static constexpr int kDim = D;
  static constexpr int kWarps = D <= 128 ? 4 : 8;
  static constexpr int kThreads = kWarps * kWarpSize;
  static constexpr int kBlocks = D <= 128 ? 2 : 1;  // per SM
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

/// Multiply each row of sums by its factor.
template <int kRows, int D>
MEGALITE_DEVICE void scale_rows(Sums<kRows, D>& sums, const RowValues<kRows>& factor) {
  MEGALITE_UNROLL
  for (int i = 0; i < kRows / kMmaTile; ++i) {
    MEGALITE_UNROLL
    for (auto& chunk : sums.o[i]) {
      MEGALITE_UNROLL
      for (auto& fragment : chunk) {
        MEGALITE_UNROLL
        for (int e = 0; e < 8; ++e) fragment[e] *= factor.of(i, e);
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

/// Write log-sum-exp of each row; -inf in rows without keys.
template <int kRows>
MEGALITE_DEVICE void write_lse(const AttentionParams<half>& p, const Place& at,
                               const RowValues<kRows>& max, const RowValues<kRows>& total,
                               float factor) {
  if ((lane() & 10) != 0) return;  // one of the four lanes that share rows
  const int64_t first = (int64_t{at.batch} * p.heads + at.head) * p.queries;
  MEGALITE_UNROLL
  for (int i = 0; i < kRows / kMmaTile; ++i) {
    MEGALITE_UNROLL
    for (int r = 0; r < 2; ++r) {
      const int row = at.first_row + i * kMmaTile + c_row(2 * r);
      if (row >= p.queries) continue;
      const float lse = (max.v[i][r] * factor + log2_approx(total.v[i][r])) * kLn2;
      p.lse.store(first + row, total.v[i][r] == 0.0f ? -kInfinity : lse);
    }
  }
}

/// Write sums / total, through the warp's rows of a tile.
template <int kRows, int D>
MEGALITE_DEVICE void write_out(const AttentionParams<half>& p, const Place& at,
                               Sums<kRows, D>& sums, const RowValues<kRows>& total,
                               const Tile<D>& tile) {
  RowValues<kRows> inverse;
  MEGALITE_UNROLL
  for (int i = 0; i < kRows / kMmaTile; ++i) {
    MEGALITE_UNROLL
    for (int r = 0; r < 2; ++r)
      inverse.v[i][r] = total.v[i][r] == 0.0f ? 0.0f : p.dropout.scale / total.v[i][r];
  }
  scale_rows(sums, inverse);
  write_sums(sums, tile, {p.out, p.queries, p.heads, p.head_dim}, at);
}

/// What a warp holds in registers throughout the loop over tiles of keys.
template <int D, bool kHasBias, bool kDrops>
struct ForwardWarp : QueryWarp<ForwardShape<D>, kHasBias> {
  using Shape = ForwardShape<D>;
  using Base = QueryWarp<Shape, kHasBias>;
  using Base::at, Base::kKeys, Base::kRows, Base::s;
  // At D = 64 a bias or dropout needs the registers.
  static constexpr bool kQueryInRegisters =
      Shape::kQueryInRegisters && !(D == 64 && (kHasBias || kDrops));
  OperandRows<D, kRows, kQueryInRegisters> query;
  Sums<kRows, D> sums;
  RunningSoftmax<kRows> softmax;

  /// S = Q K^T.
  MEGALITE_DEVICE void multiply_first(const Tile<D>& key_tile) {
    multiply_transposed(s, query, key_tile);
  }

  /// Softmax, dropout, and P V.
  MEGALITE_DEVICE void multiply_second(const AttentionParams<half>& p, const Tile<D>& value_tile,
                                       const BiasTile<Shape::kRows, kKeys>& bias, int first_key) {
    this->finish_scores(p, first_key, bias);
    const RowValues<kRows> shrink = softmax.exponentiate(s, this->factor);
    if (!all(is_one(shrink))) scale_rows(sums, shrink);
    if constexpr (kDrops) drop(s, keep_bits(p, at.batch, at.head), at.first_row, first_key);
    multiply_add(sums, s, value_tile);
  }
};

template <int D, bool kHasBias, bool kDrops>
MEGALITE_KERNEL(ForwardShape<D>::kThreads, ForwardShape<D>::kBlocks)
void attention_forward_kernel(AttentionParams<half> p) {
  if constexpr (MEGALITE_IS_FOR(70, 80)) {
    using Shape = ForwardShape<D>;
    QueryBlock<Shape, kHasBias> block(p);
    const auto query_tile = Tile<D>::at(0, Shape::kRows);
    block.load_rows(p, p.q, p.q_strides, query_tile);
    ForwardWarp<D, kHasBias, kDrops> w;
    block.set_rows(p, w);
    w.sums.clear();
    w.softmax.clear();
    block.begin(p, block.k, block.v);
    w.query.load(query_tile, warp() * Shape::kWarpRows);
    block.each_tile(p, w, block.k, block.v);
    const RowValues<Shape::kWarpRows> total = w.softmax.total();
    write_out(p, w.at, w.sums, total, query_tile);
    write_lse(p, w.at, w.softmax.max, total, w.factor);
  }
}

}  // namespace megalite::sm70
