// What the attention kernels of all architectures share: the plan's entries combined into tiles,
// the interval of a row, dropout's keep bits, the bias of a distance.
//
// Classes: a tile of query rows and keys is empty (no row attends to any of its keys: skip it),
//   full (every row attends to every key: no masking) or partial (test each row's interval).
// NaN: keys that no row attends to and rows that attend to nothing may hold any bits. A kernel
//   loads them as zeros (is_key_used, Interval::is_empty), so that a probability of 0 is never
//   multiplied by a NaN; a tile with such a row or key is never full.
#pragma once

#include "cuda/attention/params.cuh"
#include "philox.h"

namespace megalite {

inline constexpr float kLog2E = 1.4426950408889634f, kLn2 = 0.6931471805599453f;
inline constexpr float kInfinity = __builtin_bit_cast(float, 0x7f800000u);  // NVRTC has this one

constexpr MEGALITE_HOST_DEVICE int divide_up(int a, int b) { return (a + b - 1) / b; }
MEGALITE_HOST_DEVICE int smaller(int a, int b) { return a < b ? a : b; }
MEGALITE_HOST_DEVICE int larger(int a, int b) { return a < b ? b : a; }

/// Indices [first, last).
struct Range {
  int first, last;
  MEGALITE_DEVICE bool has(int i) const { return first <= i && i < last; }
};

/// The keys of one query row.
struct Interval {
  int start, end;
  MEGALITE_DEVICE bool has(int key) const { return start <= key && key < end; }
  MEGALITE_DEVICE bool is_empty() const { return start >= end; }
};

/// The interval of a row; empty beyond the last row.
template <class T>
MEGALITE_DEVICE Interval row_interval(const AttentionParams<T>& p, int batch, int row) {
  if (row >= p.queries) return {0, 0};
  const int64_t i = int64_t{batch} * p.queries + row;
  return {p.start.load(i), p.end.load(i)};
}

/// Over a tile of rows: min start and max end of the rows that attend to something (Sk and 0 if
/// none does), max start and min end of all rows.
struct RowBounds {
  int min_start, max_end, max_start, min_end;

  /// The range of tiles of kKeys keys that are not empty.
  template <int kKeys>
  MEGALITE_DEVICE Range touched_tiles() const {
    return {min_start / kKeys, divide_up(max_end, kKeys)};
  }
  /// The range of full ones among them; `last` may be below `first`.
  template <int kKeys>
  MEGALITE_DEVICE Range full_tiles() const {
    return {divide_up(max_start, kKeys), min_end / kKeys};
  }
  template <int kKeys>
  MEGALITE_DEVICE bool touches(int first_key) const {
    return min_start < first_key + kKeys && first_key < max_end;
  }
  template <int kKeys>
  MEGALITE_DEVICE bool covers(int first_key) const {
    return max_start <= first_key && first_key + kKeys <= min_end;
  }
};

/// The bounds of kRows rows from `first_row`, both multiples of kPlanTile.
template <int kRows, class T>
MEGALITE_DEVICE RowBounds row_bounds(const AttentionParams<T>& p, int batch, int first_row) {
  static_assert(kRows % kPlanTile == 0, "tiles are whole entries of the plan");
  const int entries = plan_entries(p.queries);
  const int first = first_row / kPlanTile;
  RowBounds bounds = {p.keys, 0, 0, p.keys};
  MEGALITE_UNROLL
  for (int i = 0; i < kRows / kPlanTile; ++i) {
    if (first + i >= entries) continue;
    const auto e = load_vec<4>(p.row_plan, (int64_t{batch} * entries + first + i) * 4);
    bounds.min_start = smaller(bounds.min_start, e.v[0]);
    bounds.max_end = larger(bounds.max_end, e.v[1]);
    bounds.max_start = larger(bounds.max_start, e.v[2]);
    bounds.min_end = smaller(bounds.min_end, e.v[3]);
  }
  return bounds;
}

/// The query rows that may attend to kKeys keys from `first_key`, both multiples of kPlanTile.
template <int kKeys, class T>
MEGALITE_DEVICE Range touching_rows(const AttentionParams<T>& p, int batch, int first_key) {
  static_assert(kKeys % kPlanTile == 0, "tiles are whole entries of the plan");
  const int entries = plan_entries(p.keys);
  const int first = first_key / kPlanTile;
  Range rows = {p.queries, 0};
  MEGALITE_UNROLL
  for (int i = 0; i < kKeys / kPlanTile; ++i) {
    if (first + i >= entries) continue;
    const int64_t e = (int64_t{batch} * entries + first + i) * 3;
    const Range touching = {p.key_plan.load(e), p.key_plan.load(e + 1)};
    if (touching.first >= touching.last) continue;
    rows.first = smaller(rows.first, touching.first);
    rows.last = larger(rows.last, touching.last);
  }
  return rows;
}

/// Whether some row attends to the key; false beyond the last key.
template <class T>
MEGALITE_DEVICE bool is_key_used(const AttentionParams<T>& p, int batch, int key) {
  const int entries = plan_entries(p.keys), entry = key / kPlanTile;
  const int64_t i = (int64_t{batch} * entries + smaller(entry, entries - 1)) * 3 + 2;
  return entry < entries && (static_cast<uint32_t>(p.key_plan.load(i)) >> key % kPlanTile & 1u);
}

/// Dropout of one head of one sequence: a call of Philox decides on four keys of a row.
struct KeepBits {
  uint64_t seed;
  uint32_t threshold, head, sample;

  /// Bit i: whether the probability of key 4 * key_quad + i is kept.
  MEGALITE_DEVICE uint32_t four_keys(int query, int key_quad) const {
    const PhiloxWords words =
        philox(seed, static_cast<uint32_t>(key_quad), static_cast<uint32_t>(query), head, sample);
    uint32_t bits = 0;
    MEGALITE_UNROLL
    for (int i = 0; i < 4; ++i) bits |= static_cast<uint32_t>(words.word[i] >= threshold) << i;
    return bits;
  }
};

template <class T>
MEGALITE_DEVICE KeepBits keep_bits(const AttentionParams<T>& p, int batch, int head) {
  return {p.dropout.seed, p.dropout.threshold, static_cast<uint32_t>(p.dropout.head_offset + head),
          static_cast<uint32_t>(p.dropout.sample_ids.load(batch))};
}

/// The biases of one head, by distance.
struct DistanceBias {
  Global<const float> bias;  // [Sq + Sk - 1]
  int queries, last;

  /// The bias of key - query; unspecified, but readable, outside the range of distances.
  MEGALITE_DEVICE float at(int distance) const {
    return bias.load(larger(0, smaller(distance + queries - 1, last)));
  }
};

template <class T>
MEGALITE_DEVICE DistanceBias distance_bias(const AttentionParams<T>& p, int head) {
  const int distances = p.queries + p.keys - 1;
  return {p.bias.at(int64_t{head} * distances), p.queries, distances - 1};
}

}  // namespace megalite
