// Operations on the scores of a warp on sm_70 between the products: mask, bias, dropout, softmax.
//
// Mapping: scores are a Product (warp.cuh): a lane holds two rows of each fragment, and a row is
//   spread over the four lanes that differ in bits 1 and 3. `RowValues` has a number for each of
//   the two.
// Numerics: exponentials are to base 2; a score s enters as factor * s, with scale * log2(e) in the
//   factor.
// Source: Dao 2023, arXiv:2307.08691, algorithm 1, lines 8-10.
// Tested by: tests/kernels/test_attention.py on simt.
#pragma once

#include "cuda/attention/sm70/warp.cuh"
#include "cuda/attention/tiles.cuh"

namespace megalite::sm70 {

/// One number for each row of a warp's tile.
template <int kRows>
struct RowValues {
  float v[kRows / kMmaTile][2];
  MEGALITE_DEVICE float of(int i, int e) const { return v[i][e / 2 % 2]; }
};

/// f(i, j, e) for every element of a Product that a lane holds.
template <int kRows, int kColumns, class F>
MEGALITE_DEVICE void for_each_element(F f) {
  MEGALITE_UNROLL
  for (int i = 0; i < kRows / kMmaTile; ++i) {
    MEGALITE_UNROLL
    for (int j = 0; j < kColumns / kMmaTile; ++j) {
      MEGALITE_UNROLL
      for (int e = 0; e < 8; ++e) f(i, j, e);
    }
  }
}

/// Sum or maximum over the four lanes that share a row.
MEGALITE_DEVICE float sum_over_row(float x) {
  x += shfl_xor(x, 2);
  return x + shfl_xor(x, 8);
}
MEGALITE_DEVICE float max_over_row(float x) {
  x = fmaxf(x, shfl_xor(x, 2));
  return fmaxf(x, shfl_xor(x, 8));
}

/// Set the scores of keys outside their row's interval to -inf.
template <int kRows, int kKeys>
MEGALITE_DEVICE void mask_scores(Product<kRows, kKeys>& s, const AttentionParams<half>& p,
                                 const Place& at, int first_key) {
  MEGALITE_UNROLL
  for (int i = 0; i < kRows / kMmaTile; ++i) {
    MEGALITE_UNROLL
    for (int r = 0; r < 2; ++r) {
      const Interval keys = row_interval(p, at.batch, at.first_row + i * kMmaTile + c_row(2 * r));
      MEGALITE_UNROLL
      for (int j = 0; j < kKeys / kMmaTile; ++j) {
        MEGALITE_UNROLL
        for (int n = 0; n < 4; ++n) {
          const int e = n % 2 + n / 2 * 4 + 2 * r;
          if (!keys.has(first_key + j * kMmaTile + c_column(e))) s.c[i][j][e] = -kInfinity;
        }
      }
    }
  }
}

/// The biases of a tile of rows and keys by distance, times log2(e), in shared memory.
template <int kRows, int kKeys>
struct BiasTile {
  static constexpr int kCount = kRows + kKeys - 1;
  static constexpr int kBytes = (kCount + 1) * 4;
  Shared<float> values;

  template <bool kExists>
  static MEGALITE_DEVICE BiasTile at(int byte_offset) {
    return {shared_view<float>(kExists ? byte_offset : 0, kExists ? kCount : 0)};
  }
  /// Called by all threads of the block. Zeros if there is no bias.
  MEGALITE_DEVICE void fill(const DistanceBias& bias, int first_row, int first_key) const {
    for (int i = thread_x(); i < kCount; i += block_dim_x()) {
      const int distance = first_key - first_row - (kRows - 1) + i;
      values.store(i, bias.bias ? bias.at(distance) * kLog2E : 0.0f);
    }
  }
  MEGALITE_DEVICE float of(int row, int key) const { return values.load(key - row + kRows - 1); }
};

/// s = factor * s + bias; `first_row` is the first of the warp's rows in the tile.
template <int kWarpRows, int kRows, int kKeys>
MEGALITE_DEVICE void add_bias(Product<kWarpRows, kKeys>& s, float factor,
                              const BiasTile<kRows, kKeys>& bias, int first_row) {
  for_each_element<kWarpRows, kKeys>([&](int i, int j, int e) {
    const float b = bias.of(first_row + i * kMmaTile + c_row(e), j * kMmaTile + c_column(e));
    s.c[i][j][e] = fmaf(s.c[i][j][e], factor, b);
  });
}

/// Which probabilities of a warp's tile dropout keeps. Of the two rows of a fragment a lane calls
/// Philox for one, and lane ^ 2 for the other.
template <int kRows, int kKeys>
struct KeptKeys {
  static_assert(kKeys <= 64, "eight bits per 16 keys");
  uint32_t bits[kRows / kMmaTile][2];  // of this lane's two rows

  MEGALITE_DEVICE void draw(const KeepBits& keep, int first_row, int first_key) {
    MEGALITE_UNROLL
    for (int i = 0; i < kRows / kMmaTile; ++i) {
      uint32_t mine = 0;
      MEGALITE_ROLLED
      for (int quad = 0; quad < kKeys / 8; ++quad) {
        const int key = first_key + quad / 2 * kMmaTile + (lane() & 8) + quad % 2 * 4;
        mine |= keep.four_keys(first_row + i * kMmaTile + a_row(), key / 4) << quad * 4;
      }
      const uint32_t other = shfl_xor(mine, 2);
      bits[i][0] = (lane() & 2) == 0 ? mine : other;
      bits[i][1] = (lane() & 2) == 0 ? other : mine;
    }
  }
  MEGALITE_DEVICE bool has(int i, int j, int e) const {
    return bits[i][e / 2 % 2] >> (j * 8 + (e & 1) + (lane() & 2) + (e & 4)) & 1u;
  }
};

/// Set dropped probabilities to 0; the others are not scaled.
template <int kRows, int kKeys>
MEGALITE_DEVICE void drop(Product<kRows, kKeys>& p, const KeepBits& keep, int first_row,
                          int first_key) {
  KeptKeys<kRows, kKeys> kept;
  kept.draw(keep, first_row, first_key);
  for_each_element<kRows, kKeys>([&](int i, int j, int e) {
    if (!kept.has(i, j, e)) p.c[i][j][e] = 0.0f;
  });
}

/// The softmax over keys, one tile at a time.
template <int kRows>
struct RunningSoftmax {
  RowValues<kRows> max, sum;  // max of the scores before `factor`; sum of this lane's probabilities

  MEGALITE_DEVICE void clear() {
    MEGALITE_UNROLL
    for (int i = 0; i < kRows / kMmaTile; ++i) {
      MEGALITE_UNROLL
      for (int r = 0; r < 2; ++r) max.v[i][r] = -kInfinity, sum.v[i][r] = 0.0f;
    }
  }

  /// Turn scores into 2^(factor (s - max)); returns the factor by which earlier ones must be
  /// rescaled.
  template <int kKeys>
  MEGALITE_DEVICE RowValues<kRows> exponentiate(Product<kRows, kKeys>& s, float factor) {
    RowValues<kRows> shrink;
    MEGALITE_UNROLL
    for (int i = 0; i < kRows / kMmaTile; ++i) {
      MEGALITE_UNROLL
      for (int r = 0; r < 2; ++r) shrink.v[i][r] = exponentiate_row(s.c[i], i, r, factor);
    }
    return shrink;
  }

  template <int kFragments>
  MEGALITE_DEVICE float exponentiate_row(float (&s)[kFragments][8], int i, int r, float factor) {
    float highest = max.v[i][r];
    MEGALITE_UNROLL
    for (int j = 0; j < kFragments; ++j) {
      MEGALITE_UNROLL
      for (int n = 0; n < 4; ++n) highest = fmaxf(highest, s[j][n % 2 + n / 2 * 4 + 2 * r]);
    }
    highest = max_over_row(highest);
    const float finite = highest == -kInfinity ? 0.0f : highest;
    const float shrink = exp2_approx((max.v[i][r] - finite) * factor);
    max.v[i][r] = highest;
    float total = 0.0f;
    MEGALITE_UNROLL
    for (int j = 0; j < kFragments; ++j) {
      MEGALITE_UNROLL
      for (int n = 0; n < 4; ++n) {
        float& x = s[j][n % 2 + n / 2 * 4 + 2 * r];
        x = exp2_approx(fmaf(x, factor, -finite * factor));
        total += x;
      }
    }
    sum.v[i][r] = fmaf(sum.v[i][r], shrink, total);
    return shrink;
  }

  /// The sums over whole rows.
  MEGALITE_DEVICE RowValues<kRows> total() const {
    RowValues<kRows> whole;
    MEGALITE_UNROLL
    for (int i = 0; i < kRows / kMmaTile; ++i) {
      MEGALITE_UNROLL
      for (int r = 0; r < 2; ++r) whole.v[i][r] = sum_over_row(sum.v[i][r]);
    }
    return whole;
  }
};

}  // namespace megalite::sm70
