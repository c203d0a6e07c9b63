// The scores of a warp in attention's backward pass on sm_80, in registers: S^T becomes P^T, and
// dP^T becomes dS^T; dropout's mask; rounding to 16 bits, in registers and into shared memory.
//
// Tested by: tests/kernels/test_attention.py, on the emulator.
#pragma once

#include "cuda/attention/sm80/backward_block.cuh"

namespace megalite::sm80 {

// ---------------------------------------------------------------------------------------------
// scores

/// s = left right^T, for 32 rows of the left tile and kQueries of the right one.
template <class C>
MEGALITE_DEVICE void multiply(const BackwardBlock<C>& block, WarpScores<C>& s, const Rows<C>& left,
                              const Rows<C>& right, int query) {
  MEGALITE_UNROLL
  for (int m = 0; m < C::kMTiles; ++m) {
    MEGALITE_UNROLL
    for (int n = 0; n < C::kNTiles; ++n) s[m][n][0] = s[m][n][1] = s[m][n][2] = s[m][n][3] = 0;
  }
  MEGALITE_ROLLED
  for (int first = 0; first < C::kDim / 8; first += C::kUnrolledVectors) {
    MEGALITE_UNROLL
    for (int vector = first; vector < first + C::kUnrolledVectors; vector += 2) {
      uint32_t a[C::kMTiles][4];
      MEGALITE_UNROLL
      for (int m = 0; m < C::kMTiles; ++m) left.load_a(a[m], block.warp_key() + m * 16, vector);
      MEGALITE_UNROLL
      for (int n = 0; n < C::kNTiles; n += 2) {
        uint32_t b[2][2];
        right.load_b(b, query + n * 8, vector);
        MEGALITE_UNROLL
        for (int m = 0; m < C::kMTiles; ++m) {
          mma_m16n8k16<typename C::T>(s[m][n], a[m], b[0]);
          mma_m16n8k16<typename C::T>(s[m][n + 1], a[m], b[1]);
        }
      }
    }
  }
}

/// s = log2(e) (scale s + bias). A distance recurs 8 keys and 8 rows further, so a lane loads one
/// bias for each diagonal of its fragments.
template <class C>
MEGALITE_DEVICE void add_bias(const BackwardBlock<C>& block, WarpScores<C>& s, const RowTile& t,
                              int chunk) {
  const DistanceBias bias = distance_bias(block.p, t.head);
  const int distance = block.key(0, 0) - block.first_row(t) - block.query(chunk, 0, 0);
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
        x = fmaf(x, block.p.scale * kLog2E, b);
      }
    }
  }
}

/// Turn scores into probabilities.
template <class C>
MEGALITE_DEVICE void exponentiate(const BackwardBlock<C>& block, WarpScores<C>& s, int chunk) {
  const float scale = C::kExtended && block.p.bias ? 1.0f : block.p.scale * kLog2E;
  MEGALITE_UNROLL
  for (int n = 0; n < C::kNTiles; ++n) {
    const auto of_rows = load_vec<2>(block.states(), block.query(chunk, n, 0));
    MEGALITE_UNROLL
    for (int e = 0; e < 2; ++e) {
      const float lse = as_float(static_cast<uint32_t>(of_rows.v[e]));
      MEGALITE_UNROLL
      for (int i = 0; i < 2 * C::kMTiles; ++i) {
        float& x = s[i / 2][n][i % 2 * 2 + e];
        x = exp2_approx(fmaf(x, scale, -lse));
      }
    }
  }
}

/// Set the probabilities of keys outside a row's interval to 0.
template <class C>
MEGALITE_DEVICE void mask(const BackwardBlock<C>& block, WarpScores<C>& s, int chunk) {
  MEGALITE_UNROLL
  for (int n = 0; n < C::kNTiles; ++n) {
    const int query = block.query(chunk, n, 0);
    const auto starts = load_vec<2>(block.states(), 2 * C::kRows + query);
    const auto ends = load_vec<2>(block.states(), 3 * C::kRows + query);
    MEGALITE_UNROLL
    for (int e = 0; e < 2; ++e) {
      const Interval allowed = {starts.v[e], ends.v[e]};
      MEGALITE_UNROLL
      for (int i = 0; i < 2 * C::kMTiles; ++i) {
        float& x = s[i / 2][n][i % 2 * 2 + e];
        x = allowed.has(block.key(i / 2, i % 2)) ? x : 0.0f;
      }
    }
  }
}

/// Whether dropout keeps value [m][n][e] of the scores.
template <class C>
MEGALITE_DEVICE bool is_kept(uint32_t kept, int m, int n, int e) {
  return kept >> (4 * (m * C::kNTiles + n) + e) & 1u;
}

/// dp = P * (dropped dp - delta): the gradient of the scores.
template <class C>
MEGALITE_DEVICE void differentiate(const BackwardBlock<C>& block, WarpScores<C>& dp,
                                   const WarpScores<C>& s, uint32_t kept, int chunk) {
  MEGALITE_UNROLL
  for (int n = 0; n < C::kNTiles; ++n) {
    const auto of_rows = load_vec<2>(block.states(), C::kRows + block.query(chunk, n, 0));
    MEGALITE_UNROLL
    for (int e = 0; e < 2; ++e) {
      const float delta = as_float(static_cast<uint32_t>(of_rows.v[e]));
      MEGALITE_UNROLL
      for (int m = 0; m < C::kMTiles; ++m) {
        MEGALITE_UNROLL
        for (int half = 0; half < 2; ++half) {
          float& x = dp[m][n][half * 2 + e];
          if (C::kExtended)
            x = is_kept<C>(kept, m, n, half * 2 + e) ? x * block.p.dropout.scale : 0.0f;
          x = s[m][n][half * 2 + e] * (x - delta);
        }
      }
    }
  }
}

// ---------------------------------------------------------------------------------------------
// dropout

/// Keep bits of the scores, for is_kept. A call of Philox decides on four consecutive keys, which
/// are in the four lanes that differ in lane / 4 % 4: each of them calls it for one of the four
/// values [e] of a fragment, and shuffles exchange the bits.
template <class C>
MEGALITE_DEVICE uint32_t draw(const BackwardBlock<C>& block, const RowTile& t, int chunk) {
  if (!C::kExtended || block.p.dropout.threshold == 0) return kFullMask;
  static_assert(!C::kExtended || C::kMTiles * C::kNTiles <= 8, "four bits a fragment");
  const KeepBits keep = keep_bits(block.p, block.batch(), t.head);
  const int mine = block.lane() / 4 % 4;
  uint32_t bits = 0;
  MEGALITE_ROLLED
  for (int i = 0; i < C::kMTiles * C::kNTiles; ++i) {
    bits |= keep.four_keys(block.first_row(t) + block.query(chunk, i % C::kNTiles, mine % 2),
                           block.key(i / C::kNTiles, mine / 2) / 4)
            << 4 * i;
  }
  uint32_t kept = 0;
  MEGALITE_UNROLL
  for (int e = 0; e < 4; ++e)
    kept |= (shfl(bits, (block.lane() & ~12) | e * 4) >> mine & 0x11111111u) << e;
  return kept;
}

// ---------------------------------------------------------------------------------------------
// dv and dk

template <class C>
MEGALITE_DEVICE void pack(Packed<C>& packed, const WarpScores<C>& s) {
  MEGALITE_UNROLL
  for (int m = 0; m < C::kMTiles; ++m) {
    MEGALITE_UNROLL
    for (int n = 0; n < C::kNTiles; n += 2)
      pack_a<typename C::T>(packed[m][n / 2], s[m][n], s[m][n + 1]);
  }
}

template <class C>
MEGALITE_DEVICE void pack_kept(Packed<C>& packed, const WarpScores<C>& s, uint32_t kept) {
  if (!C::kExtended) return pack<C>(packed, s);
  WarpScores<C> dropped;
  MEGALITE_UNROLL
  for (int m = 0; m < C::kMTiles; ++m) {
    MEGALITE_UNROLL
    for (int n = 0; n < C::kNTiles; ++n) {
      MEGALITE_UNROLL
      for (int e = 0; e < 4; ++e) dropped[m][n][e] = is_kept<C>(kept, m, n, e) ? s[m][n][e] : 0.0f;
    }
  }
  pack<C>(packed, dropped);
}

template <class C>
MEGALITE_DEVICE void store_scores(const BackwardBlock<C>& block, const BlockScores<C>& tile,
                                  const Packed<C>& packed, int chunk) {
  const auto words = tile.data.template as<uint32_t>();
  MEGALITE_UNROLL
  for (int m = 0; m < C::kMTiles; ++m) {
    MEGALITE_UNROLL
    for (int n = 0; n < C::kNTiles; ++n) {
      MEGALITE_UNROLL
      for (int half = 0; half < 2; ++half) {
        const int row = block.warp_key() + m * 16 + half * 8 + block.lane() / 4;
        const int index = tile.at(row, block.first_query(chunk) / 8 + n) / 2 + block.lane() % 4;
        words.store(index, packed[m][n / 2][n % 2 * 2 + half]);
      }
    }
  }
}

}  // namespace megalite::sm80
