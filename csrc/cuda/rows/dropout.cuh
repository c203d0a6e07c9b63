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
#include "philox.h"

namespace megalite {

inline constexpr int kDropoutThreads = 256;
inline constexpr int kCounterWords = 4;

template <class T>
MEGALITE_DEVICE T keep_or_drop(const DropoutParams<T>& p, uint32_t word, T x) {
  return from_float<T>(word >= p.threshold ? to_float(x) * p.scale : 0.0f);
}

/// N features of a row, starting at its element `at`.
template <int N, class T>
MEGALITE_DEVICE void drop_vector(const DropoutParams<T>& p, int64_t row, int at, uint32_t position,
                                 uint32_t sample) {
  Vec<T, N> x = load_vec<N>(p.x, row * p.features + at);
  const uint32_t counter = static_cast<uint32_t>((p.feature_offset + at) / kCounterWords);
  MEGALITE_UNROLL
  for (int group = 0; group < N / kCounterWords; ++group) {
    const PhiloxWords words = philox(p.seed, counter + group, position, 0, sample);
    MEGALITE_UNROLL
    for (int e = 0; e < kCounterWords; ++e) {
      T& value = x.v[group * kCounterWords + e];
      value = keep_or_drop(p, words.word[e], value);
    }
  }
  store_vec(p.out, row * p.features + at, x);
}

/// The features of a row that `counter` decides on: up to 4.
template <class T>
MEGALITE_DEVICE void drop_counter(const DropoutParams<T>& p, int64_t row, int64_t counter,
                                  uint32_t position, uint32_t sample) {
  const PhiloxWords words = philox(p.seed, static_cast<uint32_t>(counter), position, 0, sample);
  MEGALITE_UNROLL
  for (int e = 0; e < kCounterWords; ++e) {
    const int64_t at = counter * kCounterWords + e - p.feature_offset;
    if (at < 0 || at >= p.features) continue;
    p.out.store(row * p.features + at, keep_or_drop(p, words.word[e], p.x[row * p.features + at]));
  }
}

/// Units of a row: its vectors, or the counters that decide on its features.
template <int N, class T>
MEGALITE_HOST_DEVICE int dropout_units(const DropoutParams<T>& p) {
  if (N > 1) return p.features / N;
  return static_cast<int>((p.feature_offset + p.features - 1) / kCounterWords -
                          p.feature_offset / kCounterWords + 1);
}

template <class T, int N>
MEGALITE_KERNEL(kDropoutThreads, 4)
void dropout_kernel(DropoutParams<T> p, int rows_per_block) {
  const int units_per_row = dropout_units<N>(p);
  const int64_t rows = static_cast<int64_t>(p.batch) * p.rows_per_batch;
  for (int i = thread_x(); i < rows_per_block * units_per_row; i += block_dim_x()) {
    const int64_t row = static_cast<int64_t>(block_x()) * rows_per_block + i / units_per_row;
    if (row >= rows) return;
    const uint32_t position = static_cast<uint32_t>(p.position_offset + row % p.rows_per_batch);
    const uint32_t sample = static_cast<uint32_t>(p.sample_ids[row / p.rows_per_batch]);
    if constexpr (N > 1) {
      drop_vector<N>(p, row, i % units_per_row * N, position, sample);
    } else {
      drop_counter(p, row, p.feature_offset / kCounterWords + i % units_per_row, position, sample);
    }
  }
}

template <class T, int N>
void launch_dropout(const DropoutParams<T>& p, Stream stream) {
  const int64_t rows = static_cast<int64_t>(p.batch) * p.rows_per_batch;
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
