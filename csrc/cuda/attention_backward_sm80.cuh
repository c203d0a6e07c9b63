// Masked attention, backward, for sm_80 and later: dq, dk, dv and the gradient of the bias.
//
//   for each tile of keys j (a block takes every splits-th one):
//     for each head of the group, each tile of query rows i that may see keys of j:
//       S^T = K_j Q_i^T (+ bias);  P^T = exp(scale S^T - lse_i), 0 where masked  [keys, rows]
//       dV_j += dropped P^T dO_i
//       dP^T = V_j dO_i^T;  dS^T = P^T * (dropped dP^T - delta_i)
//       dK_j += dS^T Q_i;  dQ_i += dS K_j;  dbias += diagonals of dS
//   with delta = row sum of dO * O made before, dq and dbias summed over the splits after.
//
// Shapes: csrc/cuda/attention_params.cuh. H as in the forward pass.
// Requires: scale > 0; q, k, v, dout, out and their strides at multiples of 16 bytes.
// Mapping: the scores are made transposed, so that P^T and dS^T are the left operands of dV and dK
//   as they lie in registers. Up to H 64 a warp owns 32 keys for all rows and P never leaves its
//   registers; beyond, warps that share keys split the depth of dK and dV and read each other's
//   P^T and dS^T from shared memory. dS goes through shared memory for dQ in any case. Q_i and dO_i
//   have two buffers (one for H 256): the next ones arrive while the present ones are used.
// Numerics: fp32 sums, P and dS rounded to T for their products; dbias from unrounded dS.
//   No atomics: a block alone adds to its split of dq and dbias, tile after tile, and the splits are
//   summed in order; dk and dv sum the group's heads inside the block. The order depends on shapes
//   only, and a tile without keys adds zeros: bits don't depend on the plan or the schedule.
// Cost: five products, 10 H flops and one exp2 an allowed pair. A second, query-stationary kernel for
//   dQ would need no partial sums, but make S and dP again: seven products. By the counts of
//   instructions the five-product loop is bound by the tensor cores: 5120 clocks for 128 x 128 pairs
//   at H 64, where shared memory takes about 4100 and issue 2000; so two more products would cost
//   40 %, and the partial sums cost 16 bytes of L2 traffic for 10 * kKeys flops.
// Source: Dao 2023, arXiv:2307.08691, algorithm 2, with the partial sums of its deterministic mode.
// Tested by: tests/kernels/test_attention.py, tests/kernels/simt/test_simt_attention.py.
#pragma once

#include "attention_backward_sums_sm80.cuh"

namespace megalite::sm80 {

/// A tile of query rows of one head.
struct RowTile {
  int head, first_row;
  bool full;  // every row attends to all keys of the block's tile
};

template <class C>
struct BackwardBlock {
  using T = typename C::T;
  using Square = float[C::kMTiles][C::kNTiles][4];  // [32 keys, kQueries]
  using Packed = uint32_t[C::kMTiles][C::kNTiles / 2][4];
  using Gradient = float[C::kMTiles][C::kDTiles][4];  // [32 keys, depth]
  using Rows = SharedTile<T, C::kDim>;
  using Squares = SharedTile<T, C::kRows>;  // [kKeys, kRows]

  const AttentionParams<T>& p;
  const AttentionGradients<T>& g;
  int thread, first_key;

  MEGALITE_DEVICE static int batch() { return opaque(block_z()); }
  MEGALITE_DEVICE static int group() { return opaque(block_y()); }
  MEGALITE_DEVICE int lane() const { return thread % kWarpSize; }
  MEGALITE_DEVICE int key_warp() const { return thread / kWarpSize % C::kKeyWarps; }
  MEGALITE_DEVICE int query_warp() const { return thread / kWarpSize / C::kKeyWarps; }
  MEGALITE_DEVICE int warp_key() const { return key_warp() * 32; }
  MEGALITE_DEVICE int warp_piece() const { return query_warp() * C::kDTiles; }
  /// The key of values [m][.][2 * half + ...] and the row, in its tile, of [.][n][... + e].
  MEGALITE_DEVICE int key(int m, int half) const {
    return first_key + warp_key() + m * 16 + half * 8 + lane() / 4;
  }
  MEGALITE_DEVICE int query(int chunk, int n, int e) const {
    return first_query(chunk) + n * 8 + lane() % 4 * 2 + e;
  }
  MEGALITE_DEVICE int first_query(int chunk) const {
    return (query_warp() * C::kChunks + chunk) * C::kQueries;
  }

  template <class Tile>
  MEGALITE_DEVICE Tile tile_at(int byte, int bytes) const {
    return {shared_view<T>(byte, bytes / 2), thread};
  }
  MEGALITE_DEVICE Rows k_tile() const { return tile_at<Rows>(0, C::kKeyBytes); }
  MEGALITE_DEVICE Rows v_tile() const { return tile_at<Rows>(C::kVAt, C::kKeyBytes); }
  MEGALITE_DEVICE Rows q_tile(int stage) const {
    return tile_at<Rows>(C::kQAt + stage * C::kRowBytes, C::kRowBytes);
  }
  MEGALITE_DEVICE Rows dout_tile(int stage) const {
    return tile_at<Rows>(C::kDoutAt + stage * C::kRowBytes, C::kRowBytes);
  }
  MEGALITE_DEVICE Squares p_tile() const { return tile_at<Squares>(C::kPAt, C::kSquareBytes); }
  MEGALITE_DEVICE Squares ds_tile() const { return tile_at<Squares>(C::kDsAt, C::kSquareBytes); }
  /// Of each row: log2(e) lse, delta, start, end.
  MEGALITE_DEVICE static Shared<int32_t> states() {
    return shared_view<int32_t>(C::kStatesAt, C::kRows * 4);
  }
  MEGALITE_DEVICE static Shared<float> diagonals() {
    return shared_view<float>(C::kDiagonalsAt, C::kDiagonalBytes / 4);
  }
  MEGALITE_DEVICE bool has_dbias() const { return C::kExtended && g.dbias; }

  /// The same block; its addresses are made anew, which costs less than to keep them in registers.
  MEGALITE_DEVICE BackwardBlock fresh() const { return {p, g, opaque(thread), opaque(first_key)}; }

  // ---------------------------------------------------------------------------------------------
  // what is copied, and which tiles there are

  MEGALITE_DEVICE void start_keys(const Rows& tile, Global<const T> x, const Strides& s) const {
    const uint32_t wanted = tile.template wanted_rows<C::kKeys, C::kThreads>(
        [&](int r) { return is_key_used(p, batch(), first_key + r); });
    const int64_t at = batch() * s.batch + group() * s.head + first_key * s.row;
    tile.template start_copy<C::kKeys, C::kThreads>(x.at(at), s.row, p.head_dim, wanted);
    cp_async_commit();
  }

  /// Q_i and dO_i.
  MEGALITE_DEVICE void start_rows(const RowTile& t, int stage) const {
    const Rows q = q_tile(stage), dout = dout_tile(stage);
    const uint32_t wanted = q.template wanted_rows<C::kRows, C::kThreads>([&](int r) {
      const int row = t.first_row + r;
      return t.full ? row < p.queries : !row_interval(p, batch(), row).is_empty();
    });
    const auto start = [&](const Rows& tile, Global<const T> x, const Strides& s) {
      const int64_t at = batch() * s.batch + t.head * s.head + t.first_row * s.row;
      tile.template start_copy<C::kRows, C::kThreads>(x.at(at), s.row, p.head_dim, wanted);
    };
    start(q, p.q, p.q_strides);
    start(dout, g.dout, g.dout_strides);
    cp_async_commit();
  }

  MEGALITE_DEVICE void start_states(const RowTile& t) const {
    const int padded = divide_up(p.queries, C::kRows) * C::kRows;
    const int64_t at = (int64_t{batch()} * p.heads + t.head) * padded + t.first_row;
    if (thread < C::kRows) {
      cp_async16(states(), thread * 4, g.scratch.template as<const int32_t>(), (at + thread) * 4,
                 true);
    }
    cp_async_commit();
  }

  /// Move to the next tile, in `rows`, of which some row attends to a key; all heads of the group in
  /// turn. False if there is none.
  MEGALITE_DEVICE bool advance(RowTile& t, const Range& rows) const {
    const int last_head = (group() + 1) * (p.heads / p.groups);
    for (;;) {
      t.first_row += C::kRows;
      if (t.first_row >= rows.last) t.first_row = rows.first, ++t.head;
      if (t.head >= last_head) return false;
      const RowBounds bounds = row_bounds<C::kRows>(p, batch(), t.first_row);
      t.full = bounds.template covers<C::kKeys>(first_key);
      if (bounds.template touches<C::kKeys>(first_key)) return true;
    }
  }

  // ---------------------------------------------------------------------------------------------
  // scores

  /// s = left right^T: 32 rows of the left tile, kQueries of the right one.
  MEGALITE_DEVICE void multiply(Square& s, const Rows& left, const Rows& right, int query) const {
    MEGALITE_UNROLL
    for (int m = 0; m < C::kMTiles; ++m) {
      MEGALITE_UNROLL
      for (int n = 0; n < C::kNTiles; ++n) s[m][n][0] = s[m][n][1] = s[m][n][2] = s[m][n][3] = 0;
    }
    MEGALITE_UNROLL
    for (int piece = 0; piece < C::kDim / 8; piece += 2) {
      uint32_t a[C::kMTiles][4];
      MEGALITE_UNROLL
      for (int m = 0; m < C::kMTiles; ++m) left.load_a(a[m], warp_key() + m * 16, piece);
      MEGALITE_UNROLL
      for (int n = 0; n < C::kNTiles; n += 2) {
        uint32_t b[2][2];
        right.load_b(b, query + n * 8, piece);
        MEGALITE_UNROLL
        for (int m = 0; m < C::kMTiles; ++m) {
          mma_m16n8k16<T>(s[m][n], a[m], b[0]);
          mma_m16n8k16<T>(s[m][n + 1], a[m], b[1]);
        }
      }
    }
  }

  /// s = log2(e) (scale s + bias). A lane's distances repeat: 8 keys and 8 rows on is the same.
  MEGALITE_DEVICE void add_bias(Square& s, const RowTile& t, int chunk) const {
    const DistanceBias bias = distance_bias(p, t.head);
    const int distance = key(0, 0) - t.first_row - query(chunk, 0, 0);
    MEGALITE_UNROLL
    for (int diagonal = 1 - C::kNTiles; diagonal < 2 * C::kMTiles; ++diagonal) {
      MEGALITE_UNROLL
      for (int e = 0; e < 2; ++e) {
        const float b = bias.at(distance + diagonal * 8 - e) * kLog2E;
        MEGALITE_UNROLL
        for (int i = 0; i < 2 * C::kMTiles; ++i) {
          const int n = i - diagonal;
          if (n < 0 || n >= C::kNTiles) continue;
          float& x = s[i / 2][n][i % 2 * 2 + e];
          x = fmaf(x, p.scale * kLog2E, b);
        }
      }
    }
  }

  /// Scores become probabilities.
  template <bool kMasked>
  MEGALITE_DEVICE void exponentiate(Square& s, int chunk) const {
    const float scale = C::kExtended && p.bias ? 1.0f : p.scale * kLog2E;
    MEGALITE_UNROLL
    for (int n = 0; n < C::kNTiles; ++n) {
      MEGALITE_UNROLL
      for (int e = 0; e < 2; ++e) {
        const int state = query(chunk, n, e) * 4;
        const float lse = as_float(static_cast<uint32_t>(states().load(state)));
        Interval allowed = {0, 0};
        if (kMasked) {
          const auto bounds = load_vec<2>(states(), state + 2);
          allowed = {bounds.v[0], bounds.v[1]};
        }
        MEGALITE_UNROLL
        for (int i = 0; i < 2 * C::kMTiles; ++i) {
          float& x = s[i / 2][n][i % 2 * 2 + e];
          x = exp2_approx(fmaf(x, scale, -lse));
          if (kMasked) x = allowed.has(key(i / 2, i % 2)) ? x : 0.0f;
        }
      }
    }
  }

  /// dp = P * (dropped dp - delta): the gradient of the scores.
  MEGALITE_DEVICE void differentiate(Square& dp, const Square& s, const uint32_t (&kept)[4],
                                     int chunk) const {
    MEGALITE_UNROLL
    for (int n = 0; n < C::kNTiles; ++n) {
      MEGALITE_UNROLL
      for (int e = 0; e < 2; ++e) {
        const float delta =
            as_float(static_cast<uint32_t>(states().load(query(chunk, n, e) * 4 + 1)));
        MEGALITE_UNROLL
        for (int m = 0; m < C::kMTiles; ++m) {
          MEGALITE_UNROLL
          for (int half = 0; half < 2; ++half) {
            float& x = dp[m][n][half * 2 + e];
            if (C::kExtended) x = is_kept(kept, m, n, half * 2 + e) ? x * p.dropout.scale : 0.0f;
            x = s[m][n][half * 2 + e] * (x - delta);
          }
        }
      }
    }
  }

  // ---------------------------------------------------------------------------------------------
  // dropout

  MEGALITE_DEVICE static bool is_kept(const uint32_t (&kept)[4], int m, int n, int e) {
    return kept[e] >> 4 * (m * C::kNTiles + n) & 1u;
  }

  /// Keep bits of a square, for is_kept. Four keys of a row lie in the four lanes that differ in
  /// lane / 4 % 4; each draws for one of the four values [e] of a fragment, and they exchange.
  MEGALITE_DEVICE void draw(uint32_t (&kept)[4], const RowTile& t, int chunk) const {
    kept[0] = kept[1] = kept[2] = kept[3] = kFullMask;
    if (!C::kExtended || p.dropout.threshold == 0) return;
    const KeepBits keep = keep_bits(p, batch(), t.head);
    const int mine = lane() / 4 % 4;
    uint32_t bits = 0;
    MEGALITE_UNROLL
    for (int m = 0; m < C::kMTiles; ++m) {
      MEGALITE_UNROLL
      for (int n = 0; n < C::kNTiles; ++n) {
        bits |= keep.four_keys(t.first_row + query(chunk, n, mine % 2), key(m, mine / 2) / 4)
                << 4 * (m * C::kNTiles + n);
      }
    }
    MEGALITE_UNROLL
    for (int e = 0; e < 4; ++e) kept[e] = shfl(bits, (lane() & ~12) | e * 4) >> mine;
  }

  // ---------------------------------------------------------------------------------------------
  // dv and dk

  MEGALITE_DEVICE void pack(Packed& packed, const Square& s) const {
    MEGALITE_UNROLL
    for (int m = 0; m < C::kMTiles; ++m) {
      MEGALITE_UNROLL
      for (int n = 0; n < C::kNTiles; n += 2) pack_a<T>(packed[m][n / 2], s[m][n], s[m][n + 1]);
    }
  }

  MEGALITE_DEVICE void pack_kept(Packed& packed, const Square& s, const uint32_t (&kept)[4]) const {
    if (!C::kExtended) return pack(packed, s);
    Square dropped;
    MEGALITE_UNROLL
    for (int m = 0; m < C::kMTiles; ++m) {
      MEGALITE_UNROLL
      for (int n = 0; n < C::kNTiles; ++n) {
        MEGALITE_UNROLL
        for (int e = 0; e < 4; ++e) dropped[m][n][e] = is_kept(kept, m, n, e) ? s[m][n][e] : 0.0f;
      }
    }
    pack(packed, dropped);
  }

  MEGALITE_DEVICE void store_square(const Squares& tile, const Packed& packed, int chunk) const {
    const auto words = tile.data.template as<uint32_t>();
    MEGALITE_UNROLL
    for (int m = 0; m < C::kMTiles; ++m) {
      MEGALITE_UNROLL
      for (int n = 0; n < C::kNTiles; ++n) {
        MEGALITE_UNROLL
        for (int half = 0; half < 2; ++half) {
          const int row = warp_key() + m * 16 + half * 8 + lane() / 4;
          const int place = tile.at(row, first_query(chunk) / 8 + n) / 2 + lane() % 4;
          words.store(place, packed[m][n / 2][n % 2 * 2 + half]);
        }
      }
    }
  }

  /// sum += packed rows: [32 keys, kQueries] [kQueries, depth], `query` the first of the rows.
  MEGALITE_DEVICE void accumulate(Gradient& sum, const Packed& packed, const Rows& rows,
                                  int query) const {
    MEGALITE_UNROLL
    for (int n = 0; n < C::kNTiles / 2; ++n) {
      MEGALITE_UNROLL
      for (int d = 0; d < C::kDTiles; d += 2) {
        uint32_t b[2][2];
        rows.load_b_transposed(b, query + n * 16, warp_piece() + d);
        MEGALITE_UNROLL
        for (int m = 0; m < C::kMTiles; ++m) {
          mma_m16n8k16<T>(sum[m][d], packed[m][n], b[0]);
          mma_m16n8k16<T>(sum[m][d + 1], packed[m][n], b[1]);
        }
      }
    }
  }

  /// The same with the squares of the other warps that share this one's keys.
  MEGALITE_DEVICE void accumulate_others(Gradient& sum, const Squares& squares,
                                         const Rows& rows) const {
    MEGALITE_UNROLL
    for (int other = 1; other < C::kQueryWarps; ++other) {
      const int query = (query_warp() + other) % C::kQueryWarps * C::kQueries;
      Packed packed;
      MEGALITE_UNROLL
      for (int m = 0; m < C::kMTiles; ++m) {
        MEGALITE_UNROLL
        for (int n = 0; n < C::kNTiles / 2; ++n)
          squares.load_a(packed[m][n], warp_key() + m * 16, query / 8 + n * 2);
      }
      accumulate(sum, packed, rows, query);
    }
  }

  /// Gradient of the block's keys [keys, H], of the warp's share.
  MEGALITE_DEVICE void write(Global<T> out, const Gradient& sum, float factor) const {
    MEGALITE_UNROLL
    for (int m = 0; m < C::kMTiles; ++m) {
      MEGALITE_UNROLL
      for (int half = 0; half < 2; ++half) {
        const int64_t row = (int64_t{batch()} * p.keys + key(m, half)) * p.groups + group();
        MEGALITE_UNROLL
        for (int d = 0; d < C::kDTiles; ++d) {
          const int h = (warp_piece() + d) * 8 + lane() % 4 * 2;
          if (key(m, half) >= p.keys || h >= p.head_dim) continue;
          out.template as<uint32_t>().store(
              (row * p.head_dim + h) / 2,
              pack2<T>(sum[m][d][half * 2] * factor, sum[m][d][half * 2 + 1] * factor));
        }
      }
    }
  }

  // ---------------------------------------------------------------------------------------------
  // dq and dbias

  /// This thread's fragments of a tile of the split's dq, 4 numbers each kThreads * 4 apart.
  MEGALITE_DEVICE Global<float> partial_dq(int head, int row_tile) const {
    const auto scratch = BackwardScratch<C>::of(p, false);
    const int64_t of_head = (int64_t{block_x()} * p.batch + batch()) * p.heads + head;
    return g.scratch.at(scratch.dq_at +
                        (of_head * scratch.row_tiles + row_tile) * C::kRows * C::kDim + thread * 4);
  }

  /// dQ_i += dS K_j.
  MEGALITE_DEVICE void add_query_gradient(const RowTile& t) const {
    constexpr int kFragments = C::kRowMTiles * C::kColumnTiles;
    const Global<float> partial = partial_dq(t.head, t.first_row / C::kRows);
    Vec<float, 4> before[kFragments];
    MEGALITE_UNROLL
    for (int f = 0; f < kFragments; ++f) before[f] = load_vec<4>(partial, f * C::kThreads * 4);
    float dq[kFragments][4] = {};
    const int row = thread / kWarpSize % C::kRowWarps * C::kRowMTiles * 16;
    const int column = thread / kWarpSize / C::kRowWarps * C::kColumnTiles;
    MEGALITE_UNROLL
    for (int k = 0; k < C::kKeys; k += 16) {
      uint32_t a[C::kRowMTiles][4];
      MEGALITE_UNROLL
      for (int m = 0; m < C::kRowMTiles; ++m) ds_tile().load_a_transposed(a[m], k, row / 8 + m * 2);
      MEGALITE_UNROLL
      for (int d = 0; d < C::kColumnTiles; d += 2) {
        uint32_t b[2][2];
        k_tile().load_b_transposed(b, k, column + d);
        MEGALITE_UNROLL
        for (int m = 0; m < C::kRowMTiles; ++m) {
          mma_m16n8k16<T>(dq[m * C::kColumnTiles + d], a[m], b[0]);
          mma_m16n8k16<T>(dq[m * C::kColumnTiles + d + 1], a[m], b[1]);
        }
      }
    }
    MEGALITE_UNROLL
    for (int f = 0; f < kFragments; ++f) {
      Vec<float, 4> after;
      MEGALITE_UNROLL
      for (int e = 0; e < 4; ++e) after.v[e] = before[f].v[e] + dq[f][e];
      store_vec(partial, f * C::kThreads * 4, after);
    }
  }

  /// Sum dS over each diagonal of a square, in a fixed order, into the warp's place.
  ///
  /// Value [n][... + e] of lane (r, c) = (lane / 4, lane % 4) is at distance 8 diagonal + r - j with
  /// j = 2 c + e. Turned j rows down, lane r holds what belongs to 8 diagonal + r, or to 8 less
  /// where it wrapped around; then the four lanes of a row are summed.
  MEGALITE_DEVICE void sum_diagonals(const Square& ds, int chunk) const {
    const auto sums = diagonals().at((thread / kWarpSize * C::kChunks + chunk) * C::kDiagonals);
    const int r = lane() / 4, c = lane() % 4;
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
        const float turned = shfl(own, from % 8 * 4 + c);
        if (from < 8) {
          here += turned;
        } else {
          wrapped += turned;
        }
      }
      // `stay` wrapped from the diagonal before, 8 further.
      const float total = quad_sum(here + stay);
      stay = wrapped;
      if (c == 0) sums.store((diagonal + C::kNTiles) * 8 + r, total);
    }
  }

  MEGALITE_DEVICE Global<float> partial_dbias(int head) const {
    const auto scratch = BackwardScratch<C>::of(p, true);
    const int64_t of_head = (int64_t{block_x()} * p.batch + batch()) * p.heads + head;
    return g.scratch.at(scratch.dbias_at + of_head * (p.queries + p.keys - 1));
  }

  /// The diagonals of all squares, added to the split's dbias.
  MEGALITE_DEVICE void add_bias_gradient(const RowTile& t) const {
    const Global<float> partial = partial_dbias(t.head);
    const int first = first_key - t.first_row + p.queries - 1;
    for (int d = thread - C::kRows; d < C::kKeys; d += C::kThreads) {
      if (first + d < 0 || first + d >= p.queries + p.keys - 1) continue;
      float sum = 0.0f;
      for (int w = 0; w < C::kWarps * C::kChunks; ++w) {
        const int key = w / C::kChunks % C::kKeyWarps * 32;
        const int query =
            (w / C::kChunks / C::kKeyWarps * C::kChunks + w % C::kChunks) * C::kQueries;
        const int place = d - key + query + C::kQueries;
        if (place >= 0 && place < C::kDiagonals) sum += diagonals().load(w * C::kDiagonals + place);
      }
      partial.store(first + d, partial.load(first + d) + sum);
    }
  }

  /// The block's part of the scratch becomes 0, each number by the thread that will add to it.
  MEGALITE_DEVICE void clear_partial_sums() const {
    const int heads = p.heads / p.groups, row_tiles = divide_up(p.queries, C::kRows);
    for (int i = 0; i < heads * row_tiles; ++i) {
      const auto partial = partial_dq(group() * heads + i / row_tiles, i % row_tiles);
      for (int f = 0; f < C::kRowMTiles * C::kColumnTiles; ++f)
        store_vec(partial, f * C::kThreads * 4, Vec<float, 4>{});
    }
    if (!has_dbias()) return;
    for (int h = 0; h < heads; ++h) {
      for (int i = thread; i < p.queries + p.keys - 1; i += C::kThreads)
        partial_dbias(group() * heads + h).store(i, 0.0f);
    }
    syncthreads();
  }

  // ---------------------------------------------------------------------------------------------

  /// All of one square of scores that needs no other warp.
  template <bool kMasked>
  MEGALITE_DEVICE void visit_square(const RowTile& t, int stage, int chunk, Gradient& dk,
                                    Gradient& dv) const {
    Square s, ds;
    Packed packed;
    uint32_t kept[4];
    multiply(s, k_tile(), q_tile(stage), first_query(chunk));
    if (C::kExtended && p.bias) add_bias(s, t, chunk);
    exponentiate<kMasked>(s, chunk);
    draw(kept, t, chunk);
    pack_kept(packed, s, kept);
    if constexpr (C::kQueryWarps > 1) store_square(p_tile(), packed, chunk);
    accumulate(dv, packed, dout_tile(stage), first_query(chunk));
    multiply(ds, v_tile(), dout_tile(stage), first_query(chunk));
    differentiate(ds, s, kept, chunk);
    if (has_dbias()) sum_diagonals(ds, chunk);
    pack(packed, ds);
    store_square(ds_tile(), packed, chunk);
    accumulate(dk, packed, q_tile(stage), first_query(chunk));
  }

  MEGALITE_DEVICE void visit_rows(const RowTile& t, int stage, Gradient& dk, Gradient& dv) const {
    MEGALITE_UNROLL
    for (int chunk = 0; chunk < C::kChunks; ++chunk) {
      if (t.full) {
        fresh().template visit_square<false>(t, stage, chunk, dk, dv);
      } else {
        fresh().template visit_square<true>(t, stage, chunk, dk, dv);
      }
    }
  }

  /// What needs the squares of other warps.
  MEGALITE_DEVICE void finish_rows(const RowTile& t, int stage, Gradient& dk, Gradient& dv) const {
    if constexpr (C::kQueryWarps > 1) {
      accumulate_others(dv, p_tile(), dout_tile(stage));
      accumulate_others(dk, ds_tile(), q_tile(stage));
    }
    add_query_gradient(t);
    if (has_dbias()) add_bias_gradient(t);
  }

  MEGALITE_DEVICE void visit_keys() const {
    Gradient dk = {}, dv = {};
    Range rows = touching_rows<C::kKeys>(p, batch(), first_key);
    rows.first = rows.first / C::kRows * C::kRows;
    RowTile t = {group() * (p.heads / p.groups), rows.first - C::kRows, false};
    syncthreads();  // nobody reads the last tile of keys any more
    bool has_more = rows.first < rows.last && advance(t, rows);
    if (has_more) {
      start_keys(k_tile(), p.k, p.k_strides);
      start_keys(v_tile(), p.v, p.v_strides);
      start_rows(t, 0);
      start_states(t);
    }
    for (int stage = 0; has_more; stage = (stage + 1) % C::kStages) {
      RowTile next = t;
      has_more = advance(next, rows);
      cp_async_wait<0>();
      syncthreads();  // the rows are there, and nobody uses dS or the other rows any more
      if (C::kStages == 2 && has_more) fresh().start_rows(next, 1 - stage);
      visit_rows(t, stage, dk, dv);
      syncthreads();  // P and dS are there, and nobody reads the states any more
      if (has_more) fresh().start_states(next);
      fresh().finish_rows(t, stage, dk, dv);
      if (C::kStages == 1 && has_more) {
        syncthreads();  // nobody reads the rows any more
        fresh().start_rows(next, 0);
      }
      t = next;
    }
    write(g.dk, dk, p.scale);
    write(g.dv, dv, p.dropout.scale);
  }
};

/// Grid: splits, key heads, sequences.
template <class C>
MEGALITE_KERNEL(C::kThreads, C::kBlocksPerSm)
void attention_backward(AttentionParams<typename C::T> p, AttentionGradients<typename C::T> g) {
  BackwardBlock<C> block = {p, g, thread_x(), block_x() * C::kKeys};
  block.clear_partial_sums();
  for (; block.first_key < p.keys; block.first_key += grid_x() * C::kKeys) block.visit_keys();
}

#ifndef __CUDACC_RTC__
template <class C>
void launch_attention_backward(const AttentionParams<typename C::T>& p,
                               const AttentionGradients<typename C::T>& g, Stream stream) {
  if (p.batch == 0 || p.heads == 0) return;
  const auto scratch = BackwardScratch<C>::of(p, static_cast<bool>(g.dbias));
  const auto grid = [&](int x, int y, int z) {
    return Dim3{static_cast<uint32_t>(larger(x, 1)), static_cast<uint32_t>(y),
                static_cast<uint32_t>(z)};
  };
  const int padded = scratch.row_tiles * C::kRows;
  launch(LaunchConfig{"attention_row_states_sm80",
                      grid(divide_up(padded * kLanesOfRow, kStateThreads), p.heads, p.batch),
                      {kStateThreads},
                      0,
                      stream},
         row_states<C>, p, g);
  const int shared_bytes = C::kSharedBytes + (g.dbias ? C::kDiagonalBytes : 0);
  launch(LaunchConfig{"attention_backward_sm80",
                      grid(scratch.splits, p.groups, p.batch),
                      {C::kThreads},
                      shared_bytes,
                      stream},
         attention_backward<C>, p, g);
  if (scratch.row_tiles > 0) {
    launch(LaunchConfig{"attention_sum_query_gradient_sm80",
                        grid(scratch.row_tiles, p.heads, p.batch),
                        {C::kThreads},
                        0,
                        stream},
           sum_query_gradient<C>, p, g);
  }
  if (g.dbias) {
    launch(LaunchConfig{"attention_sum_bias_gradient_sm80",
                        grid(divide_up(p.queries + p.keys - 1, kStateThreads), p.heads, 1),
                        {kStateThreads},
                        0,
                        stream},
           sum_bias_gradient<C>, p, g);
  }
}

/// Call f with the traits of the kernel that runs.
template <class T, int kDim, class F>
auto with_backward_traits(const AttentionParams<T>& p, F f) {
  if (p.bias || p.dropout.threshold > 0) return f(BackwardTraits<T, kDim, true>());
  return f(BackwardTraits<T, kDim, false>());
}
template <class T, class F>
auto with_backward_traits(const AttentionParams<T>& p, F f) {
  if (p.head_dim <= 32) return with_backward_traits<T, 32>(p, f);
  if (p.head_dim <= 64) return with_backward_traits<T, 64>(p, f);
  if (p.head_dim <= 96) return with_backward_traits<T, 96>(p, f);
  if (p.head_dim <= 128) return with_backward_traits<T, 128>(p, f);
  if (p.head_dim <= 192) return with_backward_traits<T, 192>(p, f);
  return with_backward_traits<T, 256>(p, f);
}
#endif

}  // namespace megalite::sm80

#ifndef __CUDACC_RTC__
namespace megalite {

template <class T>
int64_t attention_backward_scratch_sm80(const AttentionParams<T>& params, bool has_bias) {
  return sm80::with_backward_traits(params, [&](auto traits) {
    return sm80::BackwardScratch<decltype(traits)>::of(params, has_bias).size;
  });
}

template <class T>
void attention_backward_sm80(const AttentionParams<T>& params,
                             const AttentionGradients<T>& gradients, Stream stream) {
  sm80::with_backward_traits(params, [&](auto traits) {
    sm80::launch_attention_backward<decltype(traits)>(params, gradients, stream);
  });
}

}  // namespace megalite
#endif
