// Dropout of hidden states with a counter-based generator: whether an element is kept depends only
// on the seed and on the element's sample, position and feature.
//
// Shapes:    x [B, S, D] -> out [B, S, D], both contiguous.
// Requires:  has_vectors only if D and feature_offset are multiples of a 16-byte vector and the
//            pointers are 16-byte aligned.
// Mapping:   a thread evaluates one counter (4 features), or the two of a 16-byte vector of halves;
//            a block handles one row, or several if rows are short.
// Numerics:  one product in fp32, rounded once.
// Cost:      2 B S D elements moved; 10 Philox rounds per 4 elements, about 20 integer instructions
//            per element.
// Tested by: tests/kernels/test_rows.py.
#pragma once

#include "cuda/rows/params.cuh"
#include "cuda/rows/vectors.cuh"
#include "philox.h"

namespace megalite {

inline constexpr int kDropoutThreads = 256;
inline constexpr int kCounterWords = 4;

/// Where a row stands: what its random words depend on, besides the feature.
struct RowPlace {
  uint32_t position, sample;
};
MEGALITE_DEVICE RowPlace place_of(const Drops& by, int64_t row) {
  const int64_t position = by.position_offset + row % by.rows_per_batch;
  return {static_cast<uint32_t>(position),
          static_cast<uint32_t>(by.sample_ids[row / by.rows_per_batch])};
}

MEGALITE_DEVICE float keep_or_drop(const Drops& by, uint32_t word, float x) {
  return word >= by.threshold ? x * by.scale : 0.0f;
}

/// N features of a row, starting at its element `at`: a multiple of 4 with the offset, unless N is
/// 1.
template <int N>
MEGALITE_DEVICE void drop(const Drops& by, const RowPlace& place, int64_t at, Vec<float, N>& x) {
  const int64_t feature = by.feature_offset + at;
  const uint32_t counter = static_cast<uint32_t>(feature / kCounterWords);
  if constexpr (N == 1) {
    const PhiloxWords words = philox(by.seed, counter, place.position, 0, place.sample);
    const int i = static_cast<int>(feature % kCounterWords);
    const uint32_t low = i == 0 ? words.word[0] : words.word[1];
    const uint32_t high = i == 2 ? words.word[2] : words.word[3];
    x.v[0] = keep_or_drop(by, i < 2 ? low : high, x.v[0]);
  } else {
    MEGALITE_UNROLL
    for (int group = 0; group < N / kCounterWords; ++group) {
      const PhiloxWords words = philox(by.seed, counter + group, place.position, 0, place.sample);
      MEGALITE_UNROLL
      for (int e = 0; e < kCounterWords; ++e) {
        float& value = x.v[group * kCounterWords + e];
        value = keep_or_drop(by, words.word[e], value);
      }
    }
  }
}

/// N features of a row, starting at its element `at`.
template <int N, class T>
MEGALITE_DEVICE void drop_vector(const DropoutParams<T>& p, int64_t row, int at,
                                 const RowPlace& place) {
  Vec<float, N> x = widened(load_vec<N>(p.x, row * p.features + at));
  drop(p.drops, place, at, x);
  store_vec(p.out, row * p.features + at, narrowed<T>(x));
}

/// The features of a row that `counter` decides on: up to 4.
template <class T>
MEGALITE_DEVICE void drop_counter(const DropoutParams<T>& p, int64_t row, int64_t counter,
                                  const RowPlace& place) {
  const PhiloxWords words =
      philox(p.drops.seed, static_cast<uint32_t>(counter), place.position, 0, place.sample);
  MEGALITE_UNROLL
  for (int e = 0; e < kCounterWords; ++e) {
    const int64_t at = counter * kCounterWords + e - p.drops.feature_offset;
    if (at < 0 || at >= p.features) continue;
    const float x = to_float(p.x[row * p.features + at]);
    p.out.store(row * p.features + at, from_float<T>(keep_or_drop(p.drops, words.word[e], x)));
  }
}

/// Units of a row: its vectors, or the counters that decide on its features.
template <int N, class T>
MEGALITE_HOST_DEVICE int dropout_units(const DropoutParams<T>& p) {
  if (N > 1) return p.features / N;
  const int64_t first = p.drops.feature_offset;
  return static_cast<int>((first + p.features - 1) / kCounterWords - first / kCounterWords + 1);
}

template <class T, int N>
MEGALITE_KERNEL(kDropoutThreads, 4)
void dropout_kernel(DropoutParams<T> p, int rows_per_block) {
  const int units_per_row = dropout_units<N>(p);
  const int64_t rows = static_cast<int64_t>(p.batch) * p.drops.rows_per_batch;
  for (int i = thread_x(); i < rows_per_block * units_per_row; i += block_dim_x()) {
    const int64_t row = static_cast<int64_t>(block_x()) * rows_per_block + i / units_per_row;
    if (row >= rows) return;
    const RowPlace place = place_of(p.drops, row);
    if constexpr (N > 1) {
      drop_vector<N>(p, row, i % units_per_row * N, place);
    } else {
      const int64_t counter = p.drops.feature_offset / kCounterWords + i % units_per_row;
      drop_counter(p, row, counter, place);
    }
  }
}

template <class T, int N>
void launch_dropout(const DropoutParams<T>& p, Stream stream) {
  const int64_t rows = static_cast<int64_t>(p.batch) * p.drops.rows_per_batch;
  if (rows == 0 || p.features == 0) return;
  const int units_per_row = dropout_units<N>(p);
  const int rows_per_block = units_per_row < kDropoutThreads ? kDropoutThreads / units_per_row : 1;
  const int64_t blocks = (rows + rows_per_block - 1) / rows_per_block;
  launch(LaunchConfig{"dropout", {static_cast<uint32_t>(blocks)}, {kDropoutThreads}, 0, stream},
         dropout_kernel<T, N>, p, rows_per_block);
}

template <class T>
void dropout(const DropoutParams<T>& p, Stream stream) {
  if (p.has_vectors) {
    launch_dropout<T, 16 / static_cast<int>(sizeof(T))>(p, stream);
  } else {
    launch_dropout<T, 1>(p, stream);
  }
}

}  // namespace megalite
