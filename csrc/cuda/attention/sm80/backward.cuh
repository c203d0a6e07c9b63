// Masked attention, backward, for sm_80 and later: dq, dk, dv and the gradient of the bias.
//
//   for each tile of keys j (a block handles every splits-th one):
//     for each head of the group, each tile of query rows i that may attend to keys of j:
//       S^T = K_j Q_i^T (+ bias);  P^T = exp(scale S^T - lse_i), 0 where masked  [keys, rows]
//       dV_j += dropped P^T dO_i
//       dP^T = V_j dO_i^T;  dS^T = P^T * (dropped dP^T - delta_i)
//       dK_j += dS^T Q_i;  dQ_i += dS K_j;  dbias += diagonals of dS
//   with delta = row sum of dO * O computed before, dq and dbias reduced over the splits after.
//
// Shapes: csrc/cuda/attention/params.cuh. H as in the forward pass.
// Requires: scale > 0; q, k, v, dout, out 16-byte aligned, their strides multiples of 16 bytes.
// Mapping: the scores are computed transposed, so that the accumulators of P^T and dS^T are operand
//   A of dV and dK without a shuffle. Up to H 64 a warp owns 32 keys for all rows and P stays in
//   its registers; above, warps that share keys split the head dimension of dK and dV and read each
//   other's P^T and dS^T from shared memory. dS always goes through shared memory for dQ. Q_i and
//   dO_i are double-buffered (single at H 256): the next tiles are copied while these are used.
// Numerics: fp32 sums, P and dS rounded to T for their products; dbias from unrounded dS.
//   No atomics: only one block adds to a split of dq and dbias, tile after tile, and the splits are
//   summed in order; dk and dv sum the group's heads inside the block. The order depends on shapes
//   only, and a tile without keys adds zeros: bits don't depend on the plan or the schedule.
// Cost: five products, 10 H flops and one exp2 per allowed pair. A second, query-stationary kernel
//   for dQ would need no partial sums, but would recompute S and dP: seven products. By instruction
//   counts (benchmarks/sass.py) the five-product loop is bound by the tensor cores: 2560 clocks for
//   64 x 128 pairs at H 64, against 2476 of shared memory and 1855 of issue; so two more products
//   would cost 40 %, while the partial sums cost 16 bytes of L2 traffic per 10 * kKeys flops.
// Source: Dao 2023, arXiv:2307.08691, algorithm 2, with the partial sums of its deterministic mode.
// Tested by: tests/kernels/test_attention.py, on the emulator.
#pragma once

#include "cuda/attention/sm80/backward_scores.cuh"
#include "cuda/attention/sm80/backward_sums.cuh"
#include "cuda/attention/sm80/bias_gradient.cuh"

namespace megalite::sm80 {

/// The main loop: gradients tile by tile.
template <class C>
struct BackwardGradients {
  using T = typename C::T;
  using Gradient =
      float[C::kMTiles][C::kDTiles][4];  // dk or dv [32 keys, kDim / kQueryWarps] of a warp

  BackwardBlock<C> block;

  MEGALITE_DEVICE BackwardGradients fresh() const { return {block.fresh()}; }

  /// sum += packed rows: [32 keys, kQueries] times kQueries rows from `query` on.
  MEGALITE_DEVICE void accumulate(Gradient& sum, const Packed<C>& packed, const Rows<C>& rows,
                                  int query) const {
    MEGALITE_UNROLL
    for (int n = 0; n < C::kNTiles / 2; ++n) {
      MEGALITE_UNROLL
      for (int d = 0; d < C::kDTiles; d += 2) {
        uint32_t b[2][2];
        rows.load_b_transposed(b, query + n * 16, block.warp_vector() + d);
        MEGALITE_UNROLL
        for (int m = 0; m < C::kMTiles; ++m) {
          mma_m16n8k16<T>(sum[m][d], packed[m][n], b[0]);
          mma_m16n8k16<T>(sum[m][d + 1], packed[m][n], b[1]);
        }
      }
    }
  }

  /// The same with the scores of the other warps that share this one's keys.
  MEGALITE_DEVICE void accumulate_others(Gradient& sum, const BlockScores<C>& scores,
                                         const Rows<C>& rows) const {
    constexpr int kParts = C::kQueryWarps * C::kChunks, kOthers = kParts - C::kChunks;
    constexpr int kAtOnce = C::kExtended ? 1 : kOthers;
    MEGALITE_ROLLED
    for (int first = 0; first < kOthers; first += kAtOnce) {
      MEGALITE_UNROLL
      for (int i = first; i < first + kAtOnce; ++i) {
        const int query = ((block.query_warp() + 1) * C::kChunks + i) % kParts * C::kQueries;
        Packed<C> packed;
        MEGALITE_UNROLL
        for (int m = 0; m < C::kMTiles; ++m) {
          MEGALITE_UNROLL
          for (int n = 0; n < C::kNTiles / 2; ++n)
            scores.load_a(packed[m][n], block.warp_key() + m * 16, query / 8 + n * 2);
        }
        accumulate(sum, packed, rows, query);
      }
    }
  }

  /// Write the warp's part of dk or dv.
  MEGALITE_DEVICE void write(Global<T> out, const Gradient& sum, float factor) const {
    MEGALITE_UNROLL
    for (int m = 0; m < C::kMTiles; ++m) {
      MEGALITE_UNROLL
      for (int half = 0; half < 2; ++half) {
        const int64_t row =
            (int64_t{block.batch()} * block.p.keys + block.key(m, half)) * block.p.groups +
            block.group();
        MEGALITE_UNROLL
        for (int d = 0; d < C::kDTiles; ++d) {
          const int h = (block.warp_vector() + d) * 8 + block.lane() % 4 * 2;
          if (block.key(m, half) >= block.p.keys || h >= block.p.head_dim) continue;
          out.template as<uint32_t>().store(
              (row * block.p.head_dim + h) / 2,
              pack2<T>(sum[m][d][half * 2] * factor, sum[m][d][half * 2 + 1] * factor));
        }
      }
    }
  }

  // ---------------------------------------------------------------------------------------------
  // dq

  /// This thread's accumulators of a tile of the split's dq: vectors of 4, kThreads * 4 apart.
  MEGALITE_DEVICE Global<float> partial_dq(int head, int row_tile) const {
    const auto scratch = BackwardScratch<C>::of(block.p, false);
    const int64_t of_head =
        (int64_t{block_x()} * block.p.batch + block.batch()) * block.p.heads + head;
    const int64_t tile = of_head * scratch.row_tiles + row_tile;
    const int64_t at = scratch.dq_at + tile * C::kRows * C::kDim + block.thread * 4;
    return block.g.scratch.at(opaque(at));
  }

  /// dQ_i += dS K_j.
  MEGALITE_DEVICE void add_query_gradient(const RowTile& t) const {
    const Global<float> partial = partial_dq(t.head, t.tile());
    const int row = block.thread / kWarpSize % C::kRowWarps * C::kRowMTiles * 16;
    const int column = block.thread / kWarpSize / C::kRowWarps * C::kColumnTiles;
    MEGALITE_ROLLED
    for (int first = 0; first < C::kColumnTiles; first += C::kColumnsAtOnce) {
      Vec<float, 4> dq[C::kRowMTiles][C::kColumnsAtOnce];
      const auto at = [&](int m, int d) {
        return (m * C::kColumnTiles + first + d) * C::kThreads * 4;
      };
      MEGALITE_UNROLL
      for (int m = 0; m < C::kRowMTiles; ++m) {
        MEGALITE_UNROLL
        for (int d = 0; d < C::kColumnsAtOnce; ++d) dq[m][d] = load_vec<4>(partial, at(m, d));
      }
      MEGALITE_UNROLL
      for (int k = 0; k < C::kKeys; k += 16) {
        uint32_t a[C::kRowMTiles][4];
        MEGALITE_UNROLL
        for (int m = 0; m < C::kRowMTiles; ++m)
          block.ds_tile().load_a_transposed(a[m], k, row / 8 + m * 2);
        MEGALITE_UNROLL
        for (int d = 0; d < C::kColumnsAtOnce; d += 2) {
          uint32_t b[2][2];
          block.k_tile().load_b_transposed(b, k, column + first + d);
          MEGALITE_UNROLL
          for (int m = 0; m < C::kRowMTiles; ++m) {
            mma_m16n8k16<T>(dq[m][d].v, a[m], b[0]);
            mma_m16n8k16<T>(dq[m][d + 1].v, a[m], b[1]);
          }
        }
      }
      MEGALITE_UNROLL
      for (int m = 0; m < C::kRowMTiles; ++m) {
        MEGALITE_UNROLL
        for (int d = 0; d < C::kColumnsAtOnce; ++d) store_vec(partial, at(m, d), dq[m][d]);
      }
    }
  }

  /// Zero the block's partial sums; each element is zeroed by the thread that adds to it later.
  MEGALITE_DEVICE void clear_partial_sums() const {
    const int heads = block.p.heads / block.p.groups,
              row_tiles = divide_up(block.p.queries, C::kRows);
    for (int i = 0; i < heads * row_tiles; ++i) {
      const auto partial = partial_dq(block.group() * heads + i / row_tiles, i % row_tiles);
      for (int f = 0; f < C::kRowMTiles * C::kColumnTiles; ++f)
        store_vec(partial, f * C::kThreads * 4, Vec<float, 4>{});
    }
    if (!block.has_dbias()) return;
    for (int h = 0; h < heads; ++h) {
      for (int i = block.thread; i < block.p.queries + block.p.keys - 1; i += C::kThreads)
        partial_dbias(block, block.group() * heads + h).store(i, 0.0f);
    }
    syncthreads();
  }

  // ---------------------------------------------------------------------------------------------

  /// P of one chunk of query rows, and its part of dV.
  MEGALITE_DEVICE void add_value_gradient(WarpScores<C>& s, uint32_t kept, const RowTile& t,
                                          int chunk, Gradient& dv) const {
    Packed<C> packed;
    multiply(block, s, block.k_tile(), block.q_tile(t.stage()), block.first_query(chunk));
    if (C::kExtended && block.p.bias) add_bias(block, s, t, chunk);
    exponentiate(block, s, chunk);
    if (!t.is_full()) mask(block, s, chunk);
    pack_kept<C>(packed, s, kept);
    if constexpr (C::kQueryWarps > 1) store_scores(block, block.p_tile(), packed, chunk);
    accumulate(dv, packed, block.dout_tile(t.stage()), block.first_query(chunk));
  }

  /// dS of the chunk, from P, and its part of dK.
  MEGALITE_DEVICE void add_key_gradient(const WarpScores<C>& s, uint32_t kept, const RowTile& t,
                                        int chunk, Gradient& dk) const {
    WarpScores<C> ds;
    Packed<C> packed;
    multiply(block, ds, block.v_tile(), block.dout_tile(t.stage()), block.first_query(chunk));
    differentiate(block, ds, s, kept, chunk);
    if (block.has_dbias()) sum_diagonals(block, ds, chunk);
    pack<C>(packed, ds);
    store_scores(block, block.ds_tile(), packed, chunk);
    accumulate(dk, packed, block.q_tile(t.stage()), block.first_query(chunk));
  }

  MEGALITE_DEVICE void visit_rows(const RowTile& t, Gradient& dk, Gradient& dv) const {
    MEGALITE_ROLLED
    for (int chunk = 0; chunk < C::kChunks; ++chunk) {
      WarpScores<C> s;
      const uint32_t kept = draw(block.fresh(), t, chunk);
      fresh().add_value_gradient(s, kept, t, chunk, dv);
      fresh().add_key_gradient(s, kept, t, chunk, dk);
    }
  }

  /// The products that need the scores of other warps.
  MEGALITE_DEVICE void finish_rows(const RowTile& t, Gradient& dk, Gradient& dv) const {
    if constexpr (C::kQueryWarps > 1) {
      fresh().accumulate_others(dv, block.p_tile(), block.dout_tile(t.stage()));
      fresh().accumulate_others(dk, block.ds_tile(), block.q_tile(t.stage()));
    }
    fresh().add_query_gradient(t);
    if (block.has_dbias()) add_bias_gradient(block.fresh(), t);
  }

  MEGALITE_DEVICE void visit_keys() const {
    Gradient dk = {}, dv = {};
    RowTile t = block.first_tile();
    syncthreads();  // all warps have read the previous tile of keys
    if (t.exists()) {
      const BackwardBlock<C> now = block.fresh();
      now.start_keys(now.k_tile(), block.p.k, block.p.k_strides);
      now.start_keys(now.v_tile(), block.p.v, block.p.v_strides);
      now.start_rows(t);
      now.start_states(t);
    }
    while (t.exists()) {
      cp_async_wait<0>();
      syncthreads();  // the rows have arrived; dS and the previous rows have been read
      if (C::kStages == 2) {
        const BackwardBlock<C> now = block.fresh();
        now.start_rows(now.tile_after(t));
      }
      visit_rows(t, dk, dv);
      syncthreads();  // P and dS have been written; the states have been read
      // Recomputed, since keeping it from above would cost registers.
      const RowTile next = block.fresh().tile_after(t);
      block.fresh().start_states(next);
      finish_rows(t, dk, dv);
      if (C::kStages == 1) {
        syncthreads();  // the rows have been read
        block.fresh().start_rows(next);
      }
      t = next;
    }
    fresh().write(block.g.dk, dk, block.p.scale);
    fresh().write(block.g.dv, dv, block.p.dropout.scale);
  }
};

/// Grid: splits, key heads, sequences.
template <class C>
MEGALITE_KERNEL(C::kThreads, C::kBlocksPerSm)
void attention_backward(AttentionParams<typename C::T> p, AttentionGradients<typename C::T> g) {
  if constexpr (MEGALITE_IS_FOR(80, 1000)) {
    BackwardGradients<C> gradients = {{p, g, thread_x(), block_x() * C::kKeys}};
    gradients.clear_partial_sums();
    for (int& key = gradients.block.first_key; key < p.keys; key += grid_x() * C::kKeys)
      gradients.fresh().visit_keys();
  }
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
  if constexpr (C::kExtended) {  // without a bias there is no kernel to compile
    if (g.dbias) {
      launch(LaunchConfig{"attention_sum_bias_gradient_sm80",
                          grid(divide_up(p.queries + p.keys - 1, kStateThreads), p.heads, 1),
                          {kStateThreads},
                          0,
                          stream},
             sum_bias_gradient<C>, p, g);
    }
  }
}

/// Call f with the traits of a kernel, with bias and dropout or without.
template <template <class, int, bool> class Traits, int kDim, class T, class F>
auto with_extras(const AttentionParams<T>& p, F f) {
  if (p.bias || p.dropout.threshold > 0) return f(Traits<T, kDim, true>());
  return f(Traits<T, kDim, false>());
}

/// Call f with the traits of the kernel that runs.
template <class T, class F>
auto with_backward_traits(const AttentionParams<T>& p, F f) {
  if (p.head_dim <= 32) return with_extras<BackwardTraits, 32>(p, f);
  if (p.head_dim <= 64) return with_extras<BackwardTraits, 64>(p, f);
  if (p.head_dim <= 96) return with_extras<BackwardTraits, 96>(p, f);
  if (p.head_dim <= 128) return with_extras<BackwardTraits, 128>(p, f);
  if (p.head_dim <= 192) return with_extras<BackwardTraits, 192>(p, f);
  return with_extras<BackwardTraits, 256>(p, f);
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
