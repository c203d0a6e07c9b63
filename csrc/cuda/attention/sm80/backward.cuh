// Masked attention, backward, for sm_80 and later: dq, dk, dv and the gradient of the bias.
//
//   for a tile of keys j, each head of the group, each tile of query rows i that may attend to j:
//       S^T = K_j Q_i^T (+ bias);  P^T = exp(scale S^T - lse_i), 0 where masked  [keys, rows]
//       dV_j += dropped P^T dO_i
//       dP^T = V_j dO_i^T;  dS^T = P^T * (dropped dP^T - delta_i)
//       dK_j += dS^T Q_i;  dQ_i += dS K_j;  dbias += diagonals of dS
//   with delta = row sum of dO * O computed before.
//
// Shapes: csrc/cuda/attention/params.cuh. H as in the forward pass.
// Requires: scale > 0; q, k, v, dout, out 16-byte aligned, their strides multiples of 16 bytes.
// Mapping: a block has a tile of keys, or a part of its pairs (head, tile of rows), and a GPU starts
//   the longest first: backward_work.cuh. The scores are computed transposed, so that the
//   accumulators of P^T and dS^T are operand A of dV and dK without a shuffle. Up to H 64 a warp owns
//   32 keys for all rows and P stays in its registers; above, warps that share keys split the head
//   dimension of dK and dV and read each other's P^T and dS^T from shared memory. dS always goes
//   through shared memory for dQ. Q_i and dO_i are double-buffered (single at H 256).
// Numerics: fp32 sums, P and dS rounded to T for their products; dbias from unrounded dS. A block
//   sums dk and dv of its pairs in a fixed order, and parts are added in a fixed order. The sums of
//   dq and dbias over blocks are of integers (backward_units.cuh), whose order doesn't matter: no
//   block waits for another, and a step's addition needs no answer from memory. A tile without keys
//   adds zeros: bits don't depend on the plan or the schedule.
// Cost: five products, 10 H flops and one exp2 per allowed pair. A second, query-stationary kernel
//   for dQ would need no sums over blocks, but would recompute S and dP: seven products. By
//   instruction counts (benchmarks/sass.py) the five-product loop is bound by the tensor cores: 2560
//   clocks for 64 x 128 pairs at H 64; so two more products would cost 40 %, while the sums cost 4
//   bytes of L2 traffic per 10 * kKeys flops, and 10 bytes an element of dq once. Taking turns at a
//   floating-point sum would save these, but under a causal mask short blocks would wait for long.
// Source: Dao 2023, arXiv:2307.08691, algorithm 2.
// Tested by: tests/kernels/test_attention.py and test_attention_parts.py, on the emulator.
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

  using QueryGradient = float[C::kRowMTiles][C::kColumnsAtOnce][4];

  /// The first row, in its tile, of a thread's values of dq, and the first vector of its columns.
  MEGALITE_DEVICE int dq_row() const {
    return block.thread / kWarpSize % C::kRowWarps * C::kRowMTiles * 16 + block.lane() / 4;
  }
  MEGALITE_DEVICE int dq_column() const {
    return block.thread / kWarpSize / C::kRowWarps * C::kColumnTiles;
  }

  /// dS K_j, from column vector `column` on.
  MEGALITE_DEVICE void multiply_query_gradient(QueryGradient& dq, int column) const {
    const int row = dq_row() / 16 * 16;
    MEGALITE_UNROLL
    for (int k = 0; k < C::kKeys; k += 16) {
      uint32_t a[C::kRowMTiles][4];
      MEGALITE_UNROLL
      for (int m = 0; m < C::kRowMTiles; ++m)
        block.ds_tile().load_a_transposed(a[m], k, row / 8 + m * 2);
      MEGALITE_UNROLL
      for (int d = 0; d < C::kColumnsAtOnce; d += 2) {
        uint32_t b[2][2];
        block.k_tile().load_b_transposed(b, k, column + d);
        MEGALITE_UNROLL
        for (int m = 0; m < C::kRowMTiles; ++m) {
          mma_m16n8k16<T>(dq[m][d], a[m], b[0]);
          mma_m16n8k16<T>(dq[m][d + 1], a[m], b[1]);
        }
      }
    }
  }

  /// Add to the sums of dQ_i, or begin them if no other tile of keys touches the rows.
  MEGALITE_DEVICE void sum_query_gradient(const QueryGradient& dq, const RowTile& t,
                                          int first) const {
    const int64_t tile =
        (int64_t{block.batch()} * block.p.heads + t.head) * block.w.row_tiles + t.tile();
    const int64_t of_units = opaque(block.w.units_at + tile * C::kRows + dq_row());
    const int64_t of_sums =
        opaque(block.w.dq_at + tile * C::kRows * C::kDim + first * 4 * C::kThreads + block.thread);
    const auto units = block.g.scratch.at(of_units);
    const auto sums = block.g.scratch.at(of_sums).template as<int32_t>();
    const bool is_sole = count_of_key_tiles<C>(block.p, block.batch(), t.tile()) == 1;
    MEGALITE_UNROLL
    for (int m = 0; m < C::kRowMTiles; ++m) {
      MEGALITE_UNROLL
      for (int half = 0; half < 2; ++half) {
        const float unit = units.load(m * 16 + half * 8);
        MEGALITE_UNROLL
        for (int i = 0; i < 2 * C::kColumnsAtOnce; ++i) {
          const int d = i / 2, e = half * 2 + i % 2;
          const int place = ((m * C::kColumnTiles + d) * 4 + e) * C::kThreads;
          const int32_t value = round_to_int(dq[m][d][e] * unit);
          if (is_sole) {
            sums.store(place, value);
          } else {
            atomic_add(sums, place, value);
          }
        }
      }
    }
  }

  /// dQ_i += dS K_j.
  MEGALITE_DEVICE void add_query_gradient(const RowTile& t) const {
    MEGALITE_ROLLED
    for (int first = 0; first < C::kColumnTiles; first += C::kColumnsAtOnce) {
      QueryGradient dq = {};
      multiply_query_gradient(dq, dq_column() + first);
      fresh().sum_query_gradient(dq, t, first);
    }
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
    if (fresh().is_divided()) return fresh().add_to_slot(dk, dv);
    fresh().write(block.g.dk, dk, block.p.scale);
    fresh().write(block.g.dv, dv, block.p.dropout.scale);
  }

  // ---------------------------------------------------------------------------------------------
  // parts

  /// A thread's values of dk or, with `of_v`, of dv in a slot: vectors of 4, kThreads * 4 apart.
  MEGALITE_DEVICE Global<float> in_slot(int slot, int of_v) const {
    const int64_t key_heads = int64_t{block.p.batch} * block.p.groups;
    const int64_t tile = (slot * key_heads + key_head()) * divided_tiles() + divided_tile();
    return block.g.scratch.at(block.w.slots_at + (tile * 2 + of_v) * C::kKeys * C::kDim +
                              block.thread * 4);
  }
  MEGALITE_DEVICE int64_t key_head() const {
    return int64_t{block.batch()} * block.p.groups + block.group();
  }
  MEGALITE_DEVICE int divided_tiles() const {
    return opaque(block.w.key_tiles) - opaque(block.w.first_divided);
  }
  MEGALITE_DEVICE int divided_tile() const {
    return block.first_key() / C::kKeys - opaque(block.w.first_divided);
  }
  MEGALITE_DEVICE bool is_divided() const { return divided_tile() >= 0; }

  /// sum += a slot's values.
  MEGALITE_DEVICE void load_slot(Gradient& sum, int slot, int of_v) const {
    const Global<float> values = in_slot(slot, of_v);
    MEGALITE_UNROLL
    for (int m = 0; m < C::kMTiles; ++m) {
      MEGALITE_UNROLL
      for (int d = 0; d < C::kDTiles; ++d) {
        const auto x = load_vec<4>(values, (m * C::kDTiles + d) * C::kThreads * 4);
        MEGALITE_UNROLL
        for (int e = 0; e < 4; ++e) sum[m][d][e] += x.v[e];
      }
    }
  }
  MEGALITE_DEVICE void store_slot(const Gradient& sum, int slot, int of_v) const {
    const Global<float> values = in_slot(slot, of_v);
    MEGALITE_UNROLL
    for (int m = 0; m < C::kMTiles; ++m) {
      MEGALITE_UNROLL
      for (int d = 0; d < C::kDTiles; ++d) {
        const float* x = sum[m][d];
        store_vec(values, (m * C::kDTiles + d) * C::kThreads * 4,
                  Vec<float, 4>{{x[0], x[1], x[2], x[3]}});
      }
    }
  }

  /// The part's slot, its turn there, and where the turns that were are counted.
  struct Turn {
    Global<int32_t> counts;
    int64_t at;
    int slot, number;
  };
  MEGALITE_DEVICE Turn turn() const {
    const int part = block.part(), slot = part % block.w.slots;
    const int64_t tile = key_head() * divided_tiles() + divided_tile();
    return {block.g.scratch.at(block.w.turns_at).template as<int32_t>(),
            tile * block.w.slots + slot, slot, part / block.w.slots};
  }

  /// Add the part's dk and dv to its slot, after the parts before it. They were started before it:
  /// a block takes its item when it starts, and so waits for running blocks only.
  MEGALITE_DEVICE void add_to_slot(Gradient& dk, Gradient& dv) const {
    const Turn mine = turn();
    if (mine.number > 0) {
      if (block.thread == 0) wait_until(mine.counts, mine.at, mine.number);
      syncthreads();
      load_slot(dk, mine.slot, 0);
      load_slot(dv, mine.slot, 1);
    }
    store_slot(dk, mine.slot, 0);
    store_slot(dv, mine.slot, 1);
    syncthreads();
    const Turn anew = fresh().turn();  // keeping it would cost registers
    if (block.thread == 0) store_release(anew.counts, anew.at, anew.number + 1);
  }

  /// dk or dv of the block's tile of keys, from all slots; a tile may have fewer parts than those.
  MEGALITE_DEVICE void write_slots(Global<T> out, int of_v, float factor) const {
    const bool is_fine = block.first_key() / C::kKeys >= block.w.key_tiles - block.w.fine_tiles;
    Gradient sum = {};
    for (int slot = 0; slot < block.w.slots && (is_fine || slot < block.w.parts); ++slot)
      load_slot(sum, slot, of_v);
    write(out, sum, factor);
  }
};

/// The block's item by its place in the grid, which is in the order of the items.
template <class C>
MEGALITE_DEVICE int item_of_grid(const BackwardWork& w) {
  const int mine = block_x() & ((1 << w.item_bits) - 1);
  return (block_z() << w.item_bits) + mine;
}

/// The next item of the block's key head: where parts wait for others, the order of the items must
/// be that in which they start.
template <class C>
MEGALITE_DEVICE int next_item(const BackwardBlock<C>& block) {
  const auto ticket = BackwardBlock<C>::states();  // nothing else is there yet
  if (block.thread == 0) {
    const auto tickets = block.g.scratch.at(block.w.tickets_at).template as<int32_t>();
    ticket.store(0,
                 atomic_add(tickets, int64_t{block.batch()} * block.p.groups + block.group(), 1));
  }
  syncthreads();
  const int item = ticket.load(0);
  syncthreads();
  return item;
}

/// An item in one register: tile of keys * 2^12 + residue * 2^4 + logarithm of the modulus, which is
/// at most kMostModulus.
template <class C>
MEGALITE_DEVICE int packed_item(const BackwardWork& w, int item) {
  const int first_fine = w.key_tiles - w.fine_tiles, of_level = w.fine_tiles << w.part_bits;
  const int in_fine = item - (first_fine << w.part_bits);
  const int level = in_fine < of_level ? 0 : in_fine / of_level;
  const int of_first_level = item - level * of_level, tile = of_first_level >> w.part_bits;
  const int levels = tile < first_fine ? 0 : w.levels;
  const int halved = level < levels ? w.parts << level : 0;
  const int residue = (of_first_level & (w.parts - 1)) + halved;
  return tile << 12 | residue << 4 | (w.part_bits + smaller(level + 1, levels));
}

/// Grid: items that are together of each key head, sequences, phases.
template <class C>
MEGALITE_KERNEL(C::kThreads, C::kBlocksPerSm)
void attention_backward(AttentionParams<typename C::T> p, AttentionGradients<typename C::T> g,
                        BackwardWork w) {
  if constexpr (MEGALITE_IS_FOR(80, 1000)) {
    BackwardGradients<C> gradients = {{p, g, w, thread_x(), 0}};
    const int item = w.slots > 0 ? next_item(gradients.block) : item_of_grid<C>(w);
    if (item >= w.items) return;
    gradients.block.item = packed_item<C>(w, item);
    gradients.fresh().visit_keys();
  }
}

/// dk and dv from the slots. Grid: that of attention_backward; the first two parts of a tile work.
template <class C>
MEGALITE_KERNEL(C::kThreads, 1)
void write_key_gradient(AttentionParams<typename C::T> p, AttentionGradients<typename C::T> g,
                        BackwardWork w) {
  const int item = item_of_grid<C>(w);
  if (item >= w.items) return;
  const BackwardGradients<C> gradients = {{p, g, w, thread_x(), packed_item<C>(w, item)}};
  if (!gradients.is_divided()) return;
  if (gradients.block.part() == 0) gradients.write_slots(g.dk, 0, p.scale);
  if (gradients.block.part() == 1) gradients.write_slots(g.dv, 1, p.dropout.scale);
}

#ifndef __CUDACC_RTC__
template <class C>
void launch_attention_backward(const AttentionParams<typename C::T>& p,
                               const AttentionGradients<typename C::T>& g, Stream stream) {
  const BackwardWork w = backward_work<C>(p, static_cast<bool>(g.dbias));
  const auto run = [&](const char* name, auto kernel, Dim3 grid, int threads, int shared_bytes) {
    launch(LaunchConfig{name, grid, {static_cast<uint32_t>(threads)}, shared_bytes, stream}, kernel,
           p, g, w);
  };
  const auto grid = [](int x, int y, int z) {
    return Dim3{static_cast<uint32_t>(x), static_cast<uint32_t>(y), static_cast<uint32_t>(z)};
  };
  const Dim3 items = grid(p.groups << w.item_bits, p.batch, divide_up(w.items, 1 << w.item_bits));
  run("attention_key_maxima_sm80", key_maxima<C>, grid(w.chunks, p.groups, p.batch), kStateThreads,
      kStateThreads / kWarpSize * 8);
  run("attention_row_states_sm80", row_states<C>,
      grid(w.row_tiles * C::kRows * kLanesOfRow / kStateThreads, p.heads, p.batch), kStateThreads,
      0);
  run("attention_backward_sm80", attention_backward<C>, items, C::kThreads,
      C::kSharedBytes + (g.dbias ? C::kDiagonalBytes : 0));
  run("attention_write_query_gradient_sm80", write_query_gradient<C>,
      grid(w.row_tiles, p.heads, p.batch), C::kThreads, 0);
  if (w.slots > 0)
    run("attention_write_key_gradient_sm80", write_key_gradient<C>, items, C::kThreads, 0);
  if constexpr (C::kExtended) {  // without a bias there is no kernel to compile
    if (g.dbias) {
      run("attention_write_bias_gradient_sm80", write_bias_gradient<C>,
          grid(divide_up(p.queries + p.keys - 1, kStateThreads), p.heads, 1), kStateThreads, 0);
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
    return sm80::backward_work<decltype(traits)>(params, has_bias).size;
  });
}

template <class T>
BackwardSchedule attention_backward_schedule_sm80(const AttentionParams<T>& params, bool has_bias) {
  return sm80::with_backward_traits(params, [&](auto traits) {
    return sm80::backward_schedule<decltype(traits)>(params, has_bias);
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
