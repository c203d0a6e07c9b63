// Masked attention, forward, for sm_80 and later: out = softmax(scale q k^T + bias) v.
//
//   for each tile of query rows (one block), for each tile j of keys that some row may attend to:
//     S = Q K_j^T (+ bias), masked if the tile is partial         [rows, keys]
//     m' = max(m, row max S);  P = exp(scale S - scale m')
//     l = l exp(scale m - scale m') + row sum P;  O = O exp(...) + dropped P V_j
//   out = O / l;  lse = scale m + log l
//
// Shapes: csrc/cuda/attention/params.cuh. H is a multiple of 8 up to 256; the kernel of the next
//   template size runs, with zeros in the columns from H on.
// Requires: scale > 0; q, k, v 16-byte aligned, their strides multiples of 16 bytes; Sk < 2^30.
// Mapping: a warp owns 16 or 32 whole rows, so the softmax reduces over the four lanes of a quad
//   only, and S becomes P, operand A of P V, in registers. Some columns of its rows of Q stay in
//   registers too; the others are read from shared memory for each tile of keys. K_j and V_j have
//   one buffer each: V_j is copied during Q K^T, K_{j+1} during the softmax and P V.
// Numerics: fp32 sums; P is rounded to T before P V, its row sum is not. Tiles are visited in
//   ascending order whatever their class, and a tile without keys changes nothing: its P is
//   0 and its factor 1. So the bits do not depend on how tight the plan is. exp is exp2, with
//   log2(e) folded into the scale.
// Cost: 4 H flops and one exp2 per allowed pair; reads q once, k and v once per tile of rows.
// Source: Dao 2023, arXiv:2307.08691, algorithm 1; tile sizes: flash_fwd_launch_template.h there.
// Tested by: tests/kernels/test_attention.py, on the emulator.
#pragma once

#include "cuda/attention/sm80/tensor_tiles.cuh"
#include "cuda/attention/tiles.cuh"

namespace megalite::sm80 {

/// What a forward kernel is compiled for. kExtended adds bias and dropout; kSmall is for blocks of
/// 99 KiB of shared memory (sm_86, sm_89, sm_120), which all but the widest heads fit anyway.
template <class T_, int kDim_, bool kExtended_, bool kSmall>
struct ForwardTraitsOf {
  using T = T_;
  static constexpr int kDim = kDim_;
  static constexpr bool kExtended = kExtended_;
  // From H 192 on 8 warps share a tile of keys; below, 4 leave room for a second block on the SM.
  static constexpr int kWarps = kDim > 128 ? 8 : 4;
  static constexpr int kThreads = kWarps * kWarpSize;
  static constexpr int kBlocksPerSm = kDim > 128 ? 1 : 2;
  // S takes kKeys / 8 * kMTiles fragments: at most 64 registers per lane.
  static constexpr int kRows = 128;
  static constexpr int kKeys = kDim == 128 || kSmall ? 32 : 64;
  static constexpr int kMTiles = kRows / kWarps / 16;
  static constexpr int kNTiles = kKeys / 8;
  // Of Q's kDim / 16 fragments across, those kept in registers: what ptxas leaves room for without a
  // spill, which at H 128 is nothing on sm_120, and at H 32 without costing the SM a block.
  static constexpr int kHeldOf128 = MEGALITE_IS_FOR(80, 110) ? 2 : 0;
  static constexpr int kHeld = kDim == 192 ? 8 : kDim == 128 ? kHeldOf128 : kDim % 64 == 0 ? 4 : 0;
  static constexpr int kIntervalsAt = (kRows + 2 * kKeys) * kDim * 2;  // in bytes
  static constexpr int kSharedBytes = kIntervalsAt + kRows * 8;
  static_assert(kSharedBytes <= (kSmall ? 99 : 163) * 1024, "a block's limit");
};

template <class T, int kDim, bool kExtended>
struct ForwardTraits : ForwardTraitsOf<T, kDim, kExtended, false> {};
template <class T, int kDim, bool kExtended>
struct SmallForwardTraits : ForwardTraitsOf<T, kDim, kExtended, true> {};

/// The running softmax and output of the rows of a lane: 16 m + lane / 4 and 8 below, for each m.
template <class C>
struct ForwardState {
  float out[C::kMTiles][C::kDim / 8][4];
  float top[C::kMTiles][2];
  float total[C::kMTiles][2];  // of this lane's columns only, until finish
};

/// The first 16 kHeld columns of a warp's rows of Q, in registers over all tiles of keys.
template <class C>
struct HeldQueries {
  uint32_t a[C::kHeld + (C::kHeld == 0)][C::kMTiles][4];
};

/// One block: a tile of query rows of one head.
template <class C>
struct ForwardBlock {
  using T = typename C::T;
  using Scores = float[C::kMTiles][C::kNTiles][4];
  const AttentionParams<T>& p;
  int group, thread;
  Range full;  // tiles of keys

  // The last rows, which have the most keys under a causal mask, are scheduled first.
  MEGALITE_DEVICE static int first_row() {
    return (opaque(grid_x()) - 1 - opaque(block_x())) * C::kRows;
  }
  MEGALITE_DEVICE static int head() { return opaque(block_y()); }
  MEGALITE_DEVICE static int batch() { return opaque(block_z()); }

  using Tile = SharedTile<T, C::kDim>;
  static constexpr int kQueryTile = C::kRows * C::kDim, kKeyTile = C::kKeys * C::kDim;
  MEGALITE_DEVICE Tile q_tile() const { return {shared_view<T>(0, kQueryTile), thread}; }
  MEGALITE_DEVICE Tile k_tile() const { return {shared_view<T>(kQueryTile * 2, kKeyTile), thread}; }
  MEGALITE_DEVICE Tile v_tile() const {
    return {shared_view<T>((kQueryTile + kKeyTile) * 2, kKeyTile), thread};
  }

  /// [kRows, 2]: start and end of each row.
  MEGALITE_DEVICE static Shared<int32_t> intervals() {
    return shared_view<int32_t>(C::kIntervalsAt, C::kRows * 2);
  }

  MEGALITE_DEVICE int lane() const { return thread % kWarpSize; }
  MEGALITE_DEVICE int warp_row() const { return thread / kWarpSize * (C::kRows / C::kWarps); }
  /// The row of a lane's values [m][.][2 * half + ...].
  MEGALITE_DEVICE int row(int m, int half) const {
    return first_row() + warp_row() + m * 16 + half * 8 + lane() / 4;
  }
  /// The key of a lane's values [.][n][... + e].
  MEGALITE_DEVICE int key(int j, int n, int e) const {
    return j * C::kKeys + n * 8 + lane() % 4 * 2 + e;
  }

  MEGALITE_DEVICE void store_intervals() const {
    for (int r = thread; r < C::kRows; r += C::kThreads) {
      const Interval i = row_interval(p, batch(), first_row() + r);
      store_vec(intervals(), r * 2, Vec<int32_t, 2>{{i.start, i.end}});
    }
  }

  MEGALITE_DEVICE void start_queries() const {
    const int64_t base = batch() * p.q_strides.batch + head() * p.q_strides.head;
    const uint32_t wanted = q_tile().template wanted_rows<C::kRows, C::kThreads>(
        [&](int r) { return first_row() + r < p.queries; });
    q_tile().template start_copy<C::kRows, C::kThreads>(
        p.q.at(base + first_row() * p.q_strides.row), p.q_strides.row, p.head_dim, wanted);
  }

  /// Copy tile j of k or v.
  MEGALITE_DEVICE void start_keys(const Tile& tile, Global<const T> x, const Strides& strides,
                                  int j) const {
    uint32_t wanted = kFullMask;
    if (!full.has(j)) {
      wanted = tile.template wanted_rows<C::kKeys, C::kThreads>(
          [&](int r) { return is_key_used(p, batch(), j * C::kKeys + r); });
    }
    const int64_t base = batch() * strides.batch + group * strides.head;
    tile.template start_copy<C::kKeys, C::kThreads>(x.at(base + j * C::kKeys * strides.row),
                                                    strides.row, p.head_dim, wanted);
    cp_async_commit();
  }

  /// Columns [8 vector, 8 vector + 16) of the warp's rows of Q.
  MEGALITE_DEVICE void load_queries(uint32_t (&a)[C::kMTiles][4], int vector) const {
    MEGALITE_UNROLL
    for (int m = 0; m < C::kMTiles; ++m) q_tile().load_a(a[m], warp_row() + m * 16, vector);
  }

  /// S = Q K^T.
  MEGALITE_DEVICE void multiply_queries_keys(Scores& s, const HeldQueries<C>& held) const {
    MEGALITE_UNROLL
    for (int m = 0; m < C::kMTiles; ++m) {
      MEGALITE_UNROLL
      for (int n = 0; n < C::kNTiles; ++n) s[m][n][0] = s[m][n][1] = s[m][n][2] = s[m][n][3] = 0;
    }
    MEGALITE_UNROLL
    for (int vector = 0; vector < C::kDim / 8; vector += 2) {
      if (vector / 2 < C::kHeld) {
        multiply_columns(s, held.a[vector / 2], vector);
      } else {
        uint32_t a[C::kMTiles][4];
        load_queries(a, vector);
        multiply_columns(s, a, vector);
      }
    }
  }

  /// S += A B, B being columns [8 vector, 8 vector + 16) of K_j.
  MEGALITE_DEVICE void multiply_columns(Scores& s, const uint32_t (&a)[C::kMTiles][4],
                                        int vector) const {
    MEGALITE_UNROLL
    for (int n = 0; n < C::kNTiles; n += 2) {
      uint32_t b[2][2];
      k_tile().load_b(b, n * 8, vector);
      MEGALITE_UNROLL
      for (int m = 0; m < C::kMTiles; ++m) {
        mma_m16n8k16<T>(s[m][n], a[m], b[0]);
        mma_m16n8k16<T>(s[m][n + 1], a[m], b[1]);
      }
    }
  }

  /// O += P V, P rounded to T.
  MEGALITE_DEVICE void multiply_probabilities_values(const Scores& s, ForwardState<C>& o) const {
    MEGALITE_UNROLL
    for (int n = 0; n < C::kNTiles; n += 2) {
      uint32_t a[C::kMTiles][4];
      MEGALITE_UNROLL
      for (int m = 0; m < C::kMTiles; ++m) pack_a<T>(a[m], s[m][n], s[m][n + 1]);
      MEGALITE_UNROLL
      for (int d = 0; d < C::kDim / 8; d += 2) {
        uint32_t b[2][2];
        v_tile().load_b_transposed(b, n * 8, d);
        MEGALITE_UNROLL
        for (int m = 0; m < C::kMTiles; ++m) {
          mma_m16n8k16<T>(o.out[m][d], a[m], b[0]);
          mma_m16n8k16<T>(o.out[m][d + 1], a[m], b[1]);
        }
      }
    }
  }

  /// S = log2(e) (scale S + bias). A distance recurs 8 rows and 8 keys further, so a lane loads one
  /// bias for each diagonal of its fragments.
  MEGALITE_DEVICE void add_bias(Scores& s, int j) const {
    const DistanceBias bias = distance_bias(p, head());
    const float scale = p.scale * kLog2E;
    MEGALITE_UNROLL
    for (int diagonal = 1 - 2 * C::kMTiles; diagonal < C::kNTiles; ++diagonal) {
      MEGALITE_UNROLL
      for (int e = 0; e < 2; ++e) {
        const float b = bias.at(key(j, diagonal, e) - row(0, 0)) * kLog2E;
        MEGALITE_UNROLL
        for (int i = 0; i < 2 * C::kMTiles; ++i) {
          const int n = diagonal + i;
          if (n < 0 || n >= C::kNTiles) continue;
          float& x = s[i / 2][n][i % 2 * 2 + e];
          x = fmaf(x, scale, b);
        }
      }
    }
  }

  /// Set the scores of keys outside a row's interval to -inf.
  MEGALITE_DEVICE void mask_scores(Scores& s, int j) const {
    MEGALITE_UNROLL
    for (int m = 0; m < C::kMTiles; ++m) {
      MEGALITE_UNROLL
      for (int half = 0; half < 2; ++half) {
        const auto bounds = load_vec<2>(intervals(), (row(m, half) - first_row()) * 2);
        const Interval allowed = {bounds.v[0], bounds.v[1]};
        MEGALITE_UNROLL
        for (int n = 0; n < C::kNTiles; ++n) {
          MEGALITE_UNROLL
          for (int e = 0; e < 2; ++e) {
            float& x = s[m][n][half * 2 + e];
            x = allowed.has(key(j, n, e)) ? x : -kInfinity;
          }
        }
      }
    }
  }

  /// Turn S into P; update the running maximum and sum, and rescale the output to the new maximum.
  template <bool kMasked>
  MEGALITE_DEVICE void update_softmax(Scores& s, ForwardState<C>& o) const {
    const float scale = C::kExtended && p.bias ? 1.0f : p.scale * kLog2E;
    MEGALITE_UNROLL
    for (int m = 0; m < C::kMTiles; ++m) {
      MEGALITE_UNROLL
      for (int half = 0; half < 2; ++half) {
        float top = o.top[m][half];
        MEGALITE_UNROLL
        for (int n = 0; n < C::kNTiles; ++n)
          top = fmaxf(top, fmaxf(s[m][n][half * 2], s[m][n][half * 2 + 1]));
        top = quad_max(top);
        const float origin = kMasked && top == -kInfinity ? 0.0f : top;  // no key yet: P = 0
        const float rescale = exp2_approx((o.top[m][half] - origin) * scale);
        const float shift = -(origin * scale);
        float total = o.total[m][half] * rescale;
        MEGALITE_UNROLL
        for (int n = 0; n < C::kNTiles; ++n) {
          MEGALITE_UNROLL
          for (int e = 0; e < 2; ++e) {
            float& x = s[m][n][half * 2 + e];
            x = exp2_approx(fmaf(x, scale, shift));
            total += x;
          }
        }
        o.top[m][half] = top;
        o.total[m][half] = total;
        MEGALITE_UNROLL
        for (int d = 0; d < C::kDim / 8; ++d) {
          o.out[m][d][half * 2] *= rescale;
          o.out[m][d][half * 2 + 1] *= rescale;
        }
      }
    }
  }

  /// Set dropped probabilities to 0. A call of Philox decides on four consecutive keys, which are
  /// in two lanes: the even one calls it for its first row, the odd one for the row 8 below, and a
  /// shuffle exchanges the bits.
  MEGALITE_DEVICE void drop(Scores& p_tile, int j) const {
    const KeepBits keep = keep_bits(p, batch(), head());
    constexpr int kTogether = C::kNTiles < 8 ? C::kNTiles : 8;  // four bits each fill 32 bits
    const int odd = lane() & 1;
    MEGALITE_UNROLL
    for (int m = 0; m < C::kMTiles; ++m) {
      MEGALITE_UNROLL
      for (int first = 0; first < C::kNTiles; first += kTogether) {
        uint32_t mine = 0;
        MEGALITE_UNROLL
        for (int n = 0; n < kTogether; ++n)
          mine |= keep.four_keys(row(m, odd), key(j, first + n, 0) / 4) << 4 * n;
        const uint32_t other = shfl_xor(mine, 1);
        const uint32_t kept[2] = {(odd ? other : mine) >> 2 * odd, (odd ? mine : other) >> 2 * odd};
        MEGALITE_UNROLL
        for (int n = 0; n < kTogether; ++n) {
          MEGALITE_UNROLL
          for (int e = 0; e < 4; ++e) {
            float& x = p_tile[m][first + n][e];
            x = kept[e / 2] >> (4 * n + e % 2) & 1u ? x : 0.0f;
          }
        }
      }
    }
  }

  /// One tile of keys. K_j is in shared memory on entry, K_{j+1} on return.
  template <bool kMasked>
  MEGALITE_DEVICE void step(int j, int last, const HeldQueries<C>& held, ForwardState<C>& o) const {
    start_keys(v_tile(), p.v, p.v_strides, j);
    Scores s;
    multiply_queries_keys(s, held);
    cp_async_wait<0>();
    syncthreads();  // V has arrived; K has been read
    if (j + 1 < last) start_keys(k_tile(), p.k, p.k_strides, j + 1);
    if (C::kExtended && p.bias) add_bias(s, j);
    if (kMasked) mask_scores(s, j);
    update_softmax<kMasked>(s, o);
    if (C::kExtended && p.dropout.threshold > 0) drop(s, j);
    multiply_probabilities_values(s, o);
    cp_async_wait<0>();
    syncthreads();  // the next K has arrived; V has been read
  }

  /// The same block, with its addresses to be recomputed; see thread_x_anew.
  MEGALITE_DEVICE ForwardBlock fresh() const { return {p, opaque(group), thread_x_anew(), full}; }

  MEGALITE_DEVICE void visit_keys(const Range& touched, ForwardState<C>& o) const {
    start_keys(k_tile(), p.k, p.k_strides, touched.first);
    cp_async_wait<0>();
    syncthreads();
    HeldQueries<C> held;
    MEGALITE_UNROLL
    for (int i = 0; i < C::kHeld; ++i) load_queries(held.a[i], 2 * i);
    for (int j = touched.first; j < touched.last;) {
      if (full.has(j)) {
        for (; j < full.last; ++j) fresh().template step<false>(j, touched.last, held, o);
      } else {
        fresh().template step<true>(j++, touched.last, held, o);
      }
    }
  }

  /// Divide by the sums, write lse, and write the output through the warp's rows of Q's tile, so
  /// that the stores are coalesced.
  MEGALITE_DEVICE void finish(ForwardState<C>& o) const {
    const float scale = C::kExtended && p.bias ? kLn2 : p.scale;
    const auto words = q_tile().data.template as<uint32_t>();
    MEGALITE_UNROLL
    for (int m = 0; m < C::kMTiles; ++m) {
      MEGALITE_UNROLL
      for (int half = 0; half < 2; ++half) {
        const float total = quad_sum(o.total[m][half]);
        const float factor = total == 0.0f ? 0.0f : p.dropout.scale / total;
        if (lane() % 4 == 0 && row(m, half) < p.queries) {
          p.lse.store(
              (int64_t{batch()} * p.heads + head()) * p.queries + row(m, half),
              total == 0.0f ? -kInfinity : fmaf(o.top[m][half], scale, log2_approx(total) * kLn2));
        }
        MEGALITE_UNROLL
        for (int d = 0; d < C::kDim / 8; ++d) {
          const int at = q_tile().at(warp_row() + m * 16 + half * 8 + lane() / 4, d) / 2;
          words.store(at + lane() % 4,
                      pack2<T>(o.out[m][d][half * 2] * factor, o.out[m][d][half * 2 + 1] * factor));
        }
      }
    }
    syncwarp();
    write_rows();
  }

  MEGALITE_DEVICE void write_rows() const {
    constexpr int kAcross = C::kDim % 64 == 0 ? 8 : 4, kDown = kWarpSize / kAcross;
    const int64_t stride = int64_t{p.heads} * p.head_dim;
    const int64_t base = (int64_t{batch()} * p.queries * p.heads + head()) * p.head_dim;
    MEGALITE_UNROLL
    for (int i = 0; i < C::kMTiles * 16; i += kDown) {
      const int r = warp_row() + i + lane() / kAcross;
      MEGALITE_UNROLL
      for (int c = 0; c < C::kDim / 8; c += kAcross) {
        const int vector = c + lane() % kAcross;
        if (first_row() + r >= p.queries || vector * 8 >= p.head_dim) continue;
        store_vec(p.out, base + (first_row() + r) * stride + vector * 8,
                  load_vec<8>(q_tile().data, q_tile().at(r, vector)));
      }
    }
  }
};

/// Grid: tiles of rows, heads, sequences.
template <class C>
MEGALITE_KERNEL(C::kThreads, C::kBlocksPerSm)
void attention_forward(AttentionParams<typename C::T> p) {
  if constexpr (MEGALITE_IS_FOR(80, 1000)) {
    using Block = ForwardBlock<C>;
    const RowBounds bounds = row_bounds<C::kRows>(p, Block::batch(), Block::first_row());
    const Block block = {p, Block::head() / (p.heads / p.groups), thread_x(),
                         bounds.template full_tiles<C::kKeys>()};
    ForwardState<C> o;
    MEGALITE_UNROLL
    for (int m = 0; m < C::kMTiles; ++m) {
      MEGALITE_UNROLL
      for (int half = 0; half < 2; ++half) o.top[m][half] = -kInfinity, o.total[m][half] = 0.0f;
      MEGALITE_UNROLL
      for (int d = 0; d < C::kDim / 8; ++d) {
        MEGALITE_UNROLL
        for (int e = 0; e < 4; ++e) o.out[m][d][e] = 0.0f;
      }
    }
    const Range touched = bounds.template touched_tiles<C::kKeys>();
    if (touched.first < touched.last) {
      block.start_queries();
      block.store_intervals();
      block.visit_keys(touched, o);
    }
    block.finish(o);
  }
}

#ifndef __CUDACC_RTC__
template <class C>
void launch_attention_forward(const AttentionParams<typename C::T>& p, Stream stream) {
  const Dim3 grid = {static_cast<uint32_t>(divide_up(p.queries, C::kRows)),
                     static_cast<uint32_t>(p.heads), static_cast<uint32_t>(p.batch)};
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  launch(LaunchConfig{"attention_forward_sm80", grid, {C::kThreads}, C::kSharedBytes, stream},
         attention_forward<C>, p);
}

template <template <class, int, bool> class Traits, int kDim, class T>
void launch_attention_forward(const AttentionParams<T>& p, Stream stream) {
  if (p.bias || p.dropout.threshold > 0) {
    launch_attention_forward<Traits<T, kDim, true>>(p, stream);
  } else {
    launch_attention_forward<Traits<T, kDim, false>>(p, stream);
  }
}
#endif

}  // namespace megalite::sm80

#ifndef __CUDACC_RTC__
namespace megalite {

template <class T>
void attention_forward_sm80(const AttentionParams<T>& params, Stream stream) {
  if (params.head_dim <= 32)
    return sm80::launch_attention_forward<sm80::ForwardTraits, 32>(params, stream);
  if (params.head_dim <= 64)
    return sm80::launch_attention_forward<sm80::ForwardTraits, 64>(params, stream);
  if (params.head_dim <= 96)
    return sm80::launch_attention_forward<sm80::ForwardTraits, 96>(params, stream);
  if (params.head_dim <= 128)
    return sm80::launch_attention_forward<sm80::ForwardTraits, 128>(params, stream);
  if (params.head_dim <= 192)
    return sm80::launch_attention_forward<sm80::ForwardTraits, 192>(params, stream);
  return sm80::launch_attention_forward<sm80::ForwardTraits, 256>(params, stream);
}

}  // namespace megalite
#endif
