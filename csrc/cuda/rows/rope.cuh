// Rotary position embedding: each pair (a, b) of a head becomes (a c - b s, b c + a s).
//
// Shapes:    x [B, S, N, H] strided, cos and sin [B, S, P, R/(2P)] fp32 -> out [B, S, N, H]
//            strided.
// Requires:  the last dimension of x and out contiguous; has_vectors only if each section, its
//            half, H and the strides are multiples of a 16-byte vector and the pointers are 16-byte
//            aligned. out may be x: a thread reads all of a unit before it writes it.
// Mapping:   a thread handles one unit at a time: a vector from each half of a section, or a vector
//            of interleaved pairs, or a vector that is copied unchanged; without has_vectors, one
//            pair or one element. A block handles one row (b, s), or several if rows are short.
// Numerics:  fp32 inside, one rounding at the end. The inverse negates s: the transposed rotation.
// Cost:      2 B S N H elements moved; the tables are read once per head, from cache.
// Source:    Su et al. 2021, arXiv:2104.09864.
// Tested by: tests/kernels/test_rows.py.
#pragma once

#include "cuda/rows/params.cuh"

namespace megalite {

inline constexpr int kRopeThreads = 256;

/// Units of a head: those that are rotated, then those that are copied.
struct RopeUnits {
  int rotated, copied;
};
template <class T>
MEGALITE_HOST_DEVICE RopeUnits rope_units(const RopeParams<T>& p, int vector) {
  const int rotated = 2 * p.axes * p.half;
  const int pairs = p.interleaved && vector > 1 ? vector / 2 : vector;  // in a unit
  return {rotated / 2 / pairs, (p.head_dim - rotated) / vector};
}

/// N cosines or sines from `i` on, in accesses of up to 16 bytes.
template <int N>
MEGALITE_DEVICE Vec<float, N> load_angles(Global<const float> table, int64_t i) {
  constexpr int kStep = N < 4 ? N : 4;
  Vec<float, N> angles;
  MEGALITE_UNROLL
  for (int e = 0; e < N; e += kStep) {
    const Vec<float, kStep> part = load_vec<kStep>(table, i + e);
    MEGALITE_UNROLL
    for (int f = 0; f < kStep; ++f) angles.v[e + f] = part.v[f];
  }
  return angles;
}

template <class T>
MEGALITE_DEVICE void rotate(T& a, T& b, float cos, float sin) {
  const float a_before = to_float(a), b_before = to_float(b);
  a = from_float<T>(a_before * cos - b_before * sin);
  b = from_float<T>(b_before * cos + a_before * sin);
}

/// One pair: x[i] and x[i + distance].
template <class T>
MEGALITE_DEVICE void rotate_pair(const RopeParams<T>& p, Global<const T> x, Global<T> out,
                                 int64_t angle, int i, int distance) {
  T a = x.load(i), b = x.load(i + distance);
  rotate(a, b, p.cos.load(angle), p.sign * p.sin.load(angle));
  out.store(i, a);
  out.store(i + distance, b);
}

/// N pairs (x[i + e], x[i + half + e]).
template <int N, class T>
MEGALITE_DEVICE void rotate_halves(const RopeParams<T>& p, Global<const T> x, Global<T> out,
                                   int64_t angle, int i) {
  Vec<T, N> a = load_vec<N>(x, i), b = load_vec<N>(x, i + p.half);
  const Vec<float, N> cos = load_angles<N>(p.cos, angle), sin = load_angles<N>(p.sin, angle);
  MEGALITE_UNROLL
  for (int e = 0; e < N; ++e) rotate(a.v[e], b.v[e], cos.v[e], p.sign * sin.v[e]);
  store_vec(out, i, a);
  store_vec(out, i + p.half, b);
}

/// N / 2 pairs of adjacent elements.
template <int N, class T>
MEGALITE_DEVICE void rotate_adjacent(const RopeParams<T>& p, Global<const T> x, Global<T> out,
                                     int64_t angle, int i) {
  Vec<T, N> pairs = load_vec<N>(x, i);
  const Vec<float, N / 2> cos = load_angles<N / 2>(p.cos, angle),
                          sin = load_angles<N / 2>(p.sin, angle);
  MEGALITE_UNROLL
  for (int e = 0; e < N; e += 2) {
    rotate(pairs.v[e], pairs.v[e + 1], cos.v[e / 2], p.sign * sin.v[e / 2]);
  }
  store_vec(out, i, pairs);
}

/// The `unit`-th rotated unit of a head; `angles` is the offset of the row in the tables.
template <int N, class T>
MEGALITE_DEVICE void rotate_unit(const RopeParams<T>& p, Global<const T> x, Global<T> out,
                                 int64_t angles, int unit) {
  if constexpr (N > 1) {
    if (p.interleaved) {
      rotate_adjacent<N>(p, x, out, angles + unit * N / 2, unit * N);
      return;
    }
  }
  const int pair = unit * N;
  const int first = p.interleaved ? 2 * pair : pair / p.half * 2 * p.half + pair % p.half;
  if constexpr (N > 1) {
    rotate_halves<N>(p, x, out, angles + pair, first);
  } else {
    rotate_pair(p, x, out, angles + pair, first, p.interleaved ? 1 : p.half);
  }
}

template <class T, int N>
MEGALITE_KERNEL(kRopeThreads, 4)
void rope_kernel(RopeParams<T> p, int rows_per_block) {
  const RopeUnits units = rope_units(p, N);
  const int units_per_head = units.rotated + units.copied, units_per_row = units_per_head * p.heads;
  const int64_t rows = static_cast<int64_t>(p.batch) * p.rows_per_batch;
  for (int i = thread_x(); i < rows_per_block * units_per_row; i += block_dim_x()) {
    const int64_t row = static_cast<int64_t>(block_x()) * rows_per_block + i / units_per_row;
    if (row >= rows) return;
    const int head = i % units_per_row / units_per_head, unit = i % units_per_row % units_per_head;
    const int64_t sequence = row / p.rows_per_batch, position = row % p.rows_per_batch;
    const auto offset = [&](const Strides& by) {
      return sequence * by.batch + position * by.row + head * by.head;
    };
    const Global<const T> x = p.x.at(offset(p.x_strides));
    const Global<T> out = p.out.at(offset(p.out_strides));
    if (unit < units.rotated) {
      rotate_unit<N>(p, x, out, row * p.axes * p.half, unit);
    } else {
      const int at = 2 * p.axes * p.half + (unit - units.rotated) * N;
      store_vec(out, at, load_vec<N>(x, at));
    }
  }
}

template <class T, int N>
void launch_rope(const RopeParams<T>& p, Stream stream) {
  const RopeUnits units = rope_units(p, N);
  const int units_per_row = (units.rotated + units.copied) * p.heads;
  const int64_t rows = static_cast<int64_t>(p.batch) * p.rows_per_batch;
  if (rows == 0 || units_per_row == 0) return;
  const int rows_per_block = units_per_row < kRopeThreads ? kRopeThreads / units_per_row : 1;
  const int64_t blocks = (rows + rows_per_block - 1) / rows_per_block;
  launch(LaunchConfig{"rope", {static_cast<uint32_t>(blocks)}, {kRopeThreads}, 0, stream},
         rope_kernel<T, N>, p, rows_per_block);
}

template <class T>
void rope(const RopeParams<T>& p, Stream stream) {
  if (p.has_vectors) {
    launch_rope<T, 16 / static_cast<int>(sizeof(T))>(p, stream);
  } else {
    launch_rope<T, 1>(p, stream);
  }
}

}  // namespace megalite
