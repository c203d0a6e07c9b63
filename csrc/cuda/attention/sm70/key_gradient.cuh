// Masked attention, backward, on sm_70: dk and dv.
//
// Shapes: csrc/cuda/attention/params.cuh; sizes as in forward.cuh.
// Requires: delta, and all that query_gradient.cuh requires.
// Mapping: a block owns kRows keys of one key head, with K and V in shared memory, and iterates
//   over the tiles of kQueries query rows that touch them, of all query heads that read the key
//   head. Scores are transposed: keys are the rows of a Product, queries its columns, so that P^T
//   and dS^T are operand A without leaving registers. From D = 192 on the accumulators of dk and dv
//   do not fit in registers together, so each has its own launch.
// Numerics: as in query_gradient.cuh.
// Cost: 8 H flops per touched pair, 10 H from D = 192 on.
// Share of the tensor cores' peak (benchmarks/sass.py): D = 32 77%, limited by issue slots; 64 89%,
//   96 73%, 128 74%, 192 and 256 56 to 60%, limited by shared memory.
// Source: Dao 2023, arXiv:2307.08691, algorithm 2, columns outside.
// Tested by: tests/kernels/test_attention.py on simt.
#pragma once

#include "cuda/attention/sm70/scores.cuh"

namespace megalite::sm70 {

/// lse (to base 2; inf in rows without keys), delta and interval of the queries of a tile, in
/// shared memory. fetch loads those of query thread_x() into registers, store writes them.
template <int kQueries>
struct QueryColumns {
  static constexpr int kBytes = 4 * kQueries * 4;
  Shared<float> values;    // [2][kQueries]
  Shared<int32_t> bounds;  // [2][kQueries]
  float lse, delta;        // in registers, between fetch and store
  Interval keys;

  MEGALITE_DEVICE void begin(int byte_offset) {
    values = shared_view<float>(byte_offset, 2 * kQueries);
    bounds = shared_view<int32_t>(byte_offset + 2 * kQueries * 4, 2 * kQueries);
  }
  MEGALITE_DEVICE void fetch(const AttentionParams<half>& p, const AttentionGradients<half>& g,
                             int batch, int head, int first_query) {
    if (thread_x() >= kQueries) return;
    const int query = first_query + thread_x();
    const int64_t i = (int64_t{batch} * p.heads + head) * p.queries + query;
    keys = row_interval(p, batch, query);
    lse = keys.is_empty() ? kInfinity : p.lse.load(i) * kLog2E;
    delta = keys.is_empty() ? 0.0f : g.delta.load(i);
  }
  MEGALITE_DEVICE void store() const {
    if (thread_x() >= kQueries) return;
    values.store(thread_x(), lse);
    values.store(kQueries + thread_x(), delta);
    bounds.store(thread_x(), keys.start);
    bounds.store(kQueries + thread_x(), keys.end);
  }
  /// lse and delta of columns `column` and `column + 1`.
  MEGALITE_DEVICE Vec<float, 2> lse_of(int column) const { return load_vec<2>(values, column); }
  MEGALITE_DEVICE Vec<float, 2> delta_of(int column) const {
    return load_vec<2>(values, kQueries + column);
  }
  MEGALITE_DEVICE Interval keys_of(int column) const {
    return {bounds.load(column), bounds.load(kQueries + column)};
  }
};

/// Set the scores [keys][queries] outside the interval of their query to -inf.
template <int kRows, int kQueries>
MEGALITE_DEVICE void mask_columns(Product<kRows, kQueries>& s,
                                  const QueryColumns<kQueries>& columns, int first_key) {
  MEGALITE_UNROLL
  for (int j = 0; j < kQueries / kMmaTile; ++j) {
    MEGALITE_UNROLL
    for (int n = 0; n < 4; ++n) {
      const int element = n % 2 + n / 2 * 4;  // this and element + 2 are in the column
      const Interval keys = columns.keys_of(j * kMmaTile + c_column(element));
      MEGALITE_UNROLL
      for (int i = 0; i < kRows / kMmaTile; ++i) {
        MEGALITE_UNROLL
        for (int e = element; e < element + 4; e += 2) {
          if (!keys.has(first_key + i * kMmaTile + c_row(e))) s.c[i][j][e] = -kInfinity;
        }
      }
    }
  }
}

/// Which probabilities [keys][queries] dropout keeps. Lanes that differ in bit 0 hold the same four
/// keys and the same queries: each calls Philox for every second query.
template <int kRows, int kQueries>
struct KeptQueries {
  static constexpr int kFragments = kRows / kMmaTile * (kQueries / kMmaTile);
  static_assert(kFragments <= 4, "eight bits for each fragment");
  uint32_t bits[2];  // of the even and the odd queries

  MEGALITE_DEVICE void draw(const KeepBits& keep, int first_key, int first_query) {
    uint32_t mine = 0;
    MEGALITE_ROLLED
    for (int n = 0; n < 2 * kFragments; ++n) {
      const int i = n / 2 / (kQueries / kMmaTile), j = n / 2 % (kQueries / kMmaTile);
      const int key = first_key + i * kMmaTile + (lane() & 4) + (lane() & 16) / 2;
      const int query = first_query + j * kMmaTile + (lane() & 11) + n % 2 * 4;
      mine |= keep.four_keys(query, key / 4) << n * 4;
    }
    const uint32_t other = shfl_xor(mine, 1);
    bits[0] = (lane() & 1) == 0 ? mine : other;
    bits[1] = (lane() & 1) == 0 ? other : mine;
  }
  MEGALITE_DEVICE bool has(int i, int j, int e) const {
    const int n = (i * (kQueries / kMmaTile) + j) * 2 + e / 4;
    return bits[e % 2] >> (n * 4 + (lane() & 1) + (e & 2)) & 1u;
  }
};

/// Blocks start with the longest of a causal mask, those of the first keys, of all key heads and
/// sequences, so that the short ones fill the gaps that the long ones leave at the end. This many
/// tiles of a head start one after another: they read the same rows, from L2, which memory alone
/// could not deliver at the rate of the tensor cores. Gradients of queries keep the order of heads:
/// at head dimension 256 they have no register left for another.
inline constexpr int kTogether = 4;

/// The tile sizes of the gradients of keys and values. Shared memory holds K, V, Q and dO.
template <int D>
struct KeyGradientShape {
  static constexpr int kWarps = D == 96 || D == 128 ? 8 : 4;
  static constexpr int kThreads = kWarps * kWarpSize;
  static constexpr int kBlocks = D <= 64 ? 2 : 1;  // per SM
  static constexpr int kWarpRows = D <= 64 ? 32 : 16;
  static constexpr int kRows = kWarps * kWarpRows;  // keys
  static constexpr int kQueries = D == 64 || D >= 192 ? 16 : 32;
  static constexpr bool kIsSplit = D >= 192;
  // The next tiles are fetched before the product for dk; at D = 256, after it, for want of
  // registers.
  static constexpr bool kFetchesLate = D == 256;
  static constexpr int kValuesAt = Tile<D>::bytes(kRows);  // bytes
  static constexpr int kQueriesAt = 2 * kValuesAt;
  static constexpr int kOutAt = kQueriesAt + Tile<D>::bytes(kQueries);
  static constexpr int kColumnsAt = kOutAt + Tile<D>::bytes(kQueries);
  static constexpr int kBiasAt = kColumnsAt + QueryColumns<kQueries>::kBytes;
  static constexpr int shared_bytes(bool has_bias) {
    return kBiasAt + (has_bias ? BiasTile<kQueries, kRows>::kBytes : 0);
  }
  static_assert(kBlocks * shared_bytes(true) <= 96 * 1024, "the blocks fit in an SM");
};

/// Iterates over the tiles of queries that touch a block's keys, head by head.
template <int D>
struct QueryTiles {
  static constexpr int kQueries = KeyGradientShape<D>::kQueries;
  int batch, first_key;
  Range tiles, heads;
  int head, tile;

  MEGALITE_DEVICE QueryTiles(const AttentionParams<half>& p, int sequence, int group, int key)
      : batch(sequence), first_key(key) {
    const Range rows = touching_rows<KeyGradientShape<D>::kRows>(p, batch, key);
    const int ratio = p.heads / p.groups;
    tiles = {rows.first / kQueries, divide_up(rows.last, kQueries)};
    heads = {group * ratio, (group + 1) * ratio};
    head = heads.first;
    tile = tiles.first;
    if (tiles.first >= tiles.last) head = heads.last;
    skip(p);
  }
  MEGALITE_DEVICE bool is_done() const { return head >= heads.last; }
  MEGALITE_DEVICE RowBounds bounds(const AttentionParams<half>& p) const {
    return row_bounds<kPlanTile>(p, batch, tile * kQueries / kPlanTile * kPlanTile);
  }
  MEGALITE_DEVICE void advance(const AttentionParams<half>& p) {
    step();
    skip(p);
  }

 private:
  MEGALITE_DEVICE void step() {
    if (++tile < tiles.last) return;
    tile = tiles.first;
    ++head;
  }
  MEGALITE_DEVICE void skip(const AttentionParams<half>& p) {
    while (!is_done() && !bounds(p).template touches<KeyGradientShape<D>::kRows>(first_key)) step();
  }
};

/// What a warp holds in registers throughout the loop over tiles of queries.
template <int D, bool kHasBias, bool kDrops, bool kWantsKey, bool kWantsValue>
struct KeyGradientWarp {
  using Shape = KeyGradientShape<D>;
  static constexpr int kRows = Shape::kWarpRows, kQueries = Shape::kQueries;
  using Columns = QueryColumns<Shape::kQueries>;
  using Bias = BiasTile<Shape::kQueries, Shape::kRows>;
  Place at;  // the warp's keys of a key head
  OperandRows<D, kRows, false> key, value;
  Sums<kRows, D> dk, dv;
  Product<kRows, kQueries> s, dp;

  /// P and dS of a tile of queries, and their contribution to dv.
  MEGALITE_DEVICE void add_values(const AttentionParams<half>& p, const QueryTiles<D>& tiles,
                                  const Tile<D>& query_tile, const Tile<D>& dout_tile,
                                  const Columns& columns, const Bias& bias) {
    multiply_transposed(s, key, query_tile);
    if constexpr (kWantsKey) multiply_transposed(dp, value, dout_tile);
    if constexpr (kHasBias) {
      for_each_element<kRows, kQueries>([&](int i, int j, int e) {
        const int row = warp() * kRows + i * kMmaTile + c_row(e);
        const float b = bias.of(j * kMmaTile + c_column(e), row);
        s.c[i][j][e] = fmaf(s.c[i][j][e], p.scale * kLog2E, b);
      });
    }
    if (!tiles.bounds(p).template covers<kRows>(at.first_row))
      mask_columns(s, columns, at.first_row);
    differentiate(p, tiles, columns);
    if constexpr (kWantsValue) multiply_add(dv, s, dout_tile);
  }

  /// Turn the scores in `s` and dP in `dp` into the dropped P and dS.
  MEGALITE_DEVICE void differentiate(const AttentionParams<half>& p, const QueryTiles<D>& tiles,
                                     const Columns& columns) {
    const float factor = kHasBias ? 1.0f : p.scale * kLog2E;
    KeptQueries<kRows, kQueries> kept;
    if constexpr (kDrops) {
      const KeepBits keep = keep_bits(p, at.batch, tiles.head);
      kept.draw(keep, at.first_row, tiles.tile * Shape::kQueries);
    }
    MEGALITE_UNROLL
    for (int j = 0; j < kQueries / kMmaTile; ++j) {
      MEGALITE_UNROLL
      for (int n = 0; n < 8; n += 4) {
        const int column = j * kMmaTile + c_column(n);
        const Vec<float, 2> lse = columns.lse_of(column), delta = columns.delta_of(column);
        MEGALITE_UNROLL
        for (int i = 0; i < kRows / kMmaTile; ++i) {
          MEGALITE_UNROLL
          for (int e = n; e < n + 4; ++e) {
            const float weight = exp2_approx(fmaf(s.c[i][j][e], factor, -lse.v[e % 2]));
            float dropped = weight, upstream = dp.c[i][j][e];
            if constexpr (kDrops) {
              const bool is_kept = kept.has(i, j, e);
              dropped = is_kept ? weight : 0.0f;
              upstream = is_kept ? upstream * p.dropout.scale : 0.0f;
            }
            s.c[i][j][e] = dropped;
            dp.c[i][j][e] = weight * (upstream - delta.v[e % 2]);
          }
        }
      }
    }
  }

  /// Scale the sums and write them to the warp's keys of `out`, through its rows of K.
  MEGALITE_DEVICE void write(const AttentionParams<half>& p, Sums<kRows, D>& sums, float factor,
                             Global<half> out, const Tile<D>& tile) const {
    scale_sums(sums, factor);
    write_sums(sums, tile, {out, p.keys, p.groups, p.head_dim}, at);
  }
};

template <int D, bool kHasBias, bool kDrops, bool kWantsKey, bool kWantsValue>
MEGALITE_KERNEL(KeyGradientShape<D>::kThreads, KeyGradientShape<D>::kBlocks)
void attention_key_gradient_kernel(AttentionParams<half> p, AttentionGradients<half> g) {
  if constexpr (MEGALITE_IS_FOR(70, 80)) {
    using Shape = KeyGradientShape<D>;
    constexpr int kRows = Shape::kRows, kQueries = Shape::kQueries, kThreads = Shape::kThreads;
    const int batch = block_y(), group = block_x() / kTogether;
    const int first_key = (block_z() * kTogether + block_x() % kTogether) * kRows;
    if (first_key >= p.keys) return;
    const auto key_tile = Tile<D>::at(0, kRows);
    const auto value_tile = Tile<D>::at(Shape::kValuesAt, kRows);
    const auto query_tile = Tile<D>::at(Shape::kQueriesAt, kQueries);
    const auto dout_tile = Tile<D>::at(Shape::kOutAt, kQueries);
    const auto bias_tile = BiasTile<kQueries, kRows>::template at<kHasBias>(Shape::kBiasAt);

    TileCopy<D, kQueries, kThreads> query_copy, dout_copy;
    QueryColumns<kQueries> columns;
    columns.begin(Shape::kColumnsAt);
    const auto fetch = [&](const QueryTiles<D>& from) {
      const int first = from.tile * kQueries;
      const bool is_full = from.bounds(p).template covers<kRows>(first_key);
      const auto is_used = [&](int row) {
        return row < p.queries && (is_full || !row_interval(p, batch, row).is_empty());
      };
      query_copy.fetch(rows_of(p.q, p.q_strides, batch, from.head, p.head_dim), first, is_used);
      dout_copy.fetch(rows_of(g.dout, g.dout_strides, batch, from.head, p.head_dim), first,
                      is_used);
      columns.fetch(p, g, batch, from.head, first);
    };
    const auto store = [&](const QueryTiles<D>& from) {
      query_copy.store(query_tile);
      dout_copy.store(dout_tile);
      columns.store();
      if constexpr (kHasBias)
        bias_tile.fill(distance_bias(p, from.head), from.tile * kQueries, first_key);
    };
    const auto is_used = [&](int key) { return is_key_used(p, batch, key); };
    copy_rows_in<kRows, kThreads>(rows_of(p.k, p.k_strides, batch, group, p.head_dim), first_key,
                                  key_tile, is_used);
    if constexpr (kWantsKey)
      copy_rows_in<kRows, kThreads>(rows_of(p.v, p.v_strides, batch, group, p.head_dim), first_key,
                                    value_tile, is_used);

    KeyGradientWarp<D, kHasBias, kDrops, kWantsKey, kWantsValue> w;
    w.at = {batch, group, first_key + warp() * Shape::kWarpRows};
    w.key.load(key_tile, warp() * Shape::kWarpRows);
    w.value.load(value_tile, warp() * Shape::kWarpRows);
    w.dk.clear();
    w.dv.clear();
    w.dp.clear();
    QueryTiles<D> tiles(p, batch, group, first_key);
    if (!tiles.is_done()) {
      fetch(tiles);
      store(tiles);
    }
    syncthreads();
    while (!tiles.is_done()) {
      const QueryTiles<D> now = tiles;
      const bool is_active = now.bounds(p).template touches<Shape::kWarpRows>(w.at.first_row);
      tiles.advance(p);
      if (is_active) w.add_values(p, now, query_tile, dout_tile, columns, bias_tile);
      if (!Shape::kFetchesLate && !tiles.is_done()) fetch(tiles);
      if constexpr (kWantsKey) {
        if (is_active) multiply_add(w.dk, w.dp, query_tile);
      }
      if (Shape::kFetchesLate && !tiles.is_done()) fetch(tiles);
      syncthreads();  // the tiles have been read
      if (tiles.is_done()) break;
      store(tiles);
      syncthreads();  // the next tiles have been stored
    }
    if constexpr (kWantsValue) w.write(p, w.dv, p.dropout.scale, g.dv, key_tile);
    if constexpr (kWantsKey) w.write(p, w.dk, p.scale, g.dk, key_tile);
  }
}

}  // namespace megalite::sm70
