// The embedding of tokens from a slice of the vocabulary, and its gradient in a fixed order.
//
// Shapes:    weight [V', D], ids [T] -> out [T, D]; dout [T, D] -> gradient [V', D].
// Requires:  has_vectors only if D is a multiple of a 16-byte vector and the pointers are 16-byte
//            aligned; the gradient is zero before.
// Mapping:   forward, a thread copies a vector; a block has one row, or several if they are short.
//            Backward, ids come sorted: the block of the first place of an id adds the rows of all
//            its places, a thread a vector of columns; the blocks of the others end at once.
// Numerics:  sums in fp32, in the order of the places, rounded once. No atomics: equal bits.
// Cost:      forward moves 2 T D elements; backward reads T D and writes a row an id, after the
//            zeros.
// Tested by: tests/kernels/test_embedding.py.
#pragma once

#include "cuda/rows/params.cuh"
#include "cuda/rows/vectors.cuh"

namespace megalite {

inline constexpr int kEmbeddingThreads = 128;
inline constexpr int kRowsAtOnce = 4;  // of a sum, loaded before they are added

template <class T, int N>
MEGALITE_KERNEL(kEmbeddingThreads, 8)
void embedding_kernel(EmbeddingParams<T> p, int rows_per_block) {
  const int units = p.width / N;
  for (int i = thread_x(); i < rows_per_block * units; i += block_dim_x()) {
    const int64_t row = static_cast<int64_t>(block_x()) * rows_per_block + i / units;
    if (row >= p.num_ids) return;
    const int column = i % units * N;
    const int64_t id = p.ids[row], place = id - p.offset;
    if (id < 0 || id >= p.vocabulary) {
      refuse("embedding ids: must be in [0, %lld), came %lld in place %lld",
             static_cast<long long>(p.vocabulary), static_cast<long long>(id),
             static_cast<long long>(row));
    }
    Vec<T, N> x = {};
    if (place >= 0 && place < p.height) x = load_vec<N>(p.weight, place * p.width + column);
    store_vec(p.out, row * p.width + column, x);
  }
}

template <class T, int N>
MEGALITE_KERNEL(kEmbeddingThreads, 8)
void embedding_gradient_kernel(EmbeddingGradientParams<T> p) {
  const int64_t first = block_x(), id = p.ids[first], place = id - p.offset;
  if (first > 0 && p.ids[first - 1] == id) return;
  if (place < 0 || place >= p.height) return;
  const int column = (block_y() * kEmbeddingThreads + thread_x()) * N;
  if (column >= p.width) return;
  Vec<float, N> sum = {};
  bool goes_on = true;
  for (int64_t at = first; goes_on; at += kRowsAtOnce) {
    Vec<T, N> rows[kRowsAtOnce];
    bool is_there[kRowsAtOnce];
    MEGALITE_UNROLL
    for (int r = 0; r < kRowsAtOnce; ++r) {
      goes_on = goes_on && at + r < p.num_ids && p.ids[at + r] == id;
      is_there[r] = goes_on;
      if (goes_on) rows[r] = load_vec<N>(p.dout, p.places[at + r] * p.width + column);
    }
    MEGALITE_UNROLL
    for (int r = 0; r < kRowsAtOnce; ++r) {
      MEGALITE_UNROLL
      for (int e = 0; e < N; ++e) {
        if (is_there[r]) sum.v[e] += to_float(rows[r].v[e]);
      }
    }
  }
  store_vec(p.gradient, place * p.width + column, narrowed<T>(sum));
}

template <class T, int N>
void launch_embedding(const EmbeddingParams<T>& p, Stream stream) {
  const int units = p.width / N;
  const int rows_per_block = units < kEmbeddingThreads ? kEmbeddingThreads / units : 1;
  const int64_t blocks = (p.num_ids + rows_per_block - 1) / rows_per_block;
  launch(LaunchConfig{"embedding", {static_cast<uint32_t>(blocks)}, {kEmbeddingThreads}, 0, stream},
         embedding_kernel<T, N>, p, rows_per_block);
}

template <class T>
void embedding(const EmbeddingParams<T>& p, Stream stream) {
  if (p.num_ids == 0 || p.width == 0) return;
  if (p.has_vectors) {
    launch_embedding<T, 16 / static_cast<int>(sizeof(T))>(p, stream);
  } else {
    launch_embedding<T, 1>(p, stream);
  }
}

template <class T, int N>
void launch_embedding_gradient(const EmbeddingGradientParams<T>& p, Stream stream) {
  constexpr int kColumns = kEmbeddingThreads * N;
  const uint32_t strips = (p.width + kColumns - 1) / kColumns;
  launch(LaunchConfig{"embedding_backward",
                      {static_cast<uint32_t>(p.num_ids), strips},
                      {kEmbeddingThreads},
                      0,
                      stream},
         embedding_gradient_kernel<T, N>, p);
}

template <class T>
void embedding_backward(const EmbeddingGradientParams<T>& p, Stream stream) {
  if (p.num_ids == 0 || p.width == 0 || p.height == 0) return;
  if (p.has_vectors) {
    launch_embedding_gradient<T, 16 / static_cast<int>(sizeof(T))>(p, stream);
  } else {
    launch_embedding_gradient<T, 1>(p, stream);
  }
}

}  // namespace megalite
