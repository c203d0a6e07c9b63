// A matrix that is held in 4 or 8 bits, as it is computed with.
//
// Shapes:    codes [O, ceil(I/2)] (NF4, two in a byte) or [O, I] (int8), scales [O, ceil(I/64)] ->
//            out [O, I].
// Requires:  has_vectors only if I is a multiple of a 16-byte vector of out and its pointer and that
//            of codes are 16-byte aligned.
// Mapping:   a thread writes a vector, whose elements are in one block of 64. The 16 levels of NF4
//            are in as many banks of shared memory: lanes read them without conflicts.
// Numerics:  one product in fp32, rounded once: the same bits on each backend.
// Cost:      moves I O elements, half as many bytes of NF4 (as many of int8) and 4 bytes a block.
// Tested by: tests/kernels/test_dequantised.py.
#pragma once

#include "cuda/rows/vectors.cuh"
#include "levels.h"

namespace megalite {

template <class T>
struct QuantisedParams {
  int64_t rows;
  int width, row_bytes, row_blocks;
  bool is_nf4, has_vectors;
  Global<const uint8_t> codes;  // [O, row_bytes]
  Global<const float> scales;   // [O, row_blocks]
  Global<T> out;                // [O, I]
};

inline constexpr int kQuantisedThreads = 256;

/// N elements of a row, from its column `at` on, without their scale.
template <int N, bool kNf4, class T>
MEGALITE_DEVICE Vec<float, N> levels_of(const QuantisedParams<T>& p, Shared<float> levels,
                                        int64_t row, int at) {
  Vec<float, N> x;
  const int64_t first = row * p.row_bytes;
  if constexpr (!kNf4) {
    const Vec<uint8_t, N> bytes = load_vec<N>(p.codes, first + at);
    MEGALITE_UNROLL
    for (int e = 0; e < N; ++e) x.v[e] = static_cast<float>(static_cast<int8_t>(bytes.v[e]));
  } else {
    const Vec<uint8_t, N / 2> bytes = load_vec<N / 2>(p.codes, first + at / 2);
    MEGALITE_UNROLL
    for (int e = 0; e < N; ++e) x.v[e] = levels.load(nf4_code(bytes.v[e / 2], e));
  }
  return x;
}

/// The same of one element.
template <bool kNf4, class T>
MEGALITE_DEVICE float level_of(const QuantisedParams<T>& p, Shared<float> levels, int64_t row,
                               int at) {
  const uint8_t byte = p.codes.load(row * p.row_bytes + (kNf4 ? at / 2 : at));
  return kNf4 ? levels.load(nf4_code(byte, at)) : static_cast<float>(static_cast<int8_t>(byte));
}

template <class T, int N, bool kNf4>
MEGALITE_KERNEL(kQuantisedThreads, 4)
void dequantised_kernel(QuantisedParams<T> p) {
  const Shared<float> levels = shared_view<float>(0, kNf4Levels);
  if (thread_x() < kNf4Levels) levels.store(thread_x(), nf4_level(thread_x()));
  syncthreads();
  const int units = p.width / N;
  const int64_t unit = static_cast<int64_t>(block_x()) * kQuantisedThreads + thread_x();
  const int64_t row = unit / units;
  if (row >= p.rows) return;
  const int at = static_cast<int>(unit % units) * N;
  const float scale = p.scales.load(row * p.row_blocks + at / kQuantisedBlock);
  if constexpr (N == 1) {
    p.out.store(row * p.width + at, from_float<T>(level_of<kNf4>(p, levels, row, at) * scale));
  } else {
    Vec<float, N> x = levels_of<N, kNf4>(p, levels, row, at);
    MEGALITE_UNROLL
    for (int e = 0; e < N; ++e) x.v[e] *= scale;
    store_vec(p.out, row * p.width + at, narrowed<T>(x));
  }
}

template <class T, int N, bool kNf4>
void launch_dequantised(const QuantisedParams<T>& p, Stream stream) {
  const int64_t units = p.rows * (p.width / N);
  const auto blocks = static_cast<uint32_t>((units + kQuantisedThreads - 1) / kQuantisedThreads);
  constexpr int kBytes = kNf4Levels * static_cast<int>(sizeof(float));
  launch(LaunchConfig{"dequantised", {blocks}, {kQuantisedThreads}, kBytes, stream},
         dequantised_kernel<T, N, kNf4>, p);
}

template <class T, bool kNf4>
void launch_dequantised(const QuantisedParams<T>& p, Stream stream) {
  if (p.has_vectors) {
    launch_dequantised<T, 16 / static_cast<int>(sizeof(T)), kNf4>(p, stream);
  } else {
    launch_dequantised<T, 1, kNf4>(p, stream);
  }
}

template <class T>
void dequantised(const QuantisedParams<T>& p, Stream stream) {
  if (p.rows == 0) return;
  p.is_nf4 ? launch_dequantised<T, true>(p, stream) : launch_dequantised<T, false>(p, stream);
}

}  // namespace megalite
