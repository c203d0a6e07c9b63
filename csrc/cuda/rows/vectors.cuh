// Vectors of elements as fp32, and back: one rounding each.
#pragma once

#include "cuda/intrinsics.cuh"

namespace megalite {

template <class T, int N>
MEGALITE_DEVICE Vec<float, N> widened(const Vec<T, N>& x) {
  Vec<float, N> wide;
  MEGALITE_UNROLL
  for (int e = 0; e < N; ++e) wide.v[e] = to_float(x.v[e]);
  return wide;
}

template <class T, int N>
MEGALITE_DEVICE Vec<T, N> narrowed(const Vec<float, N>& x) {
  Vec<T, N> narrow;
  MEGALITE_UNROLL
  for (int e = 0; e < N; ++e) narrow.v[e] = from_float<T>(x.v[e]);
  return narrow;
}

/// 16 bytes of elements as they are held for long: the compiler doesn't know that it has widened
/// them before, so it doesn't keep their fp32 values in twice the registers.
template <class T>
struct Packed {
  static constexpr int N = 16 / static_cast<int>(sizeof(T));
  int words[4];

  MEGALITE_DEVICE void set(const Vec<T, N>& x) { memcpy(words, &x, 16); }
  MEGALITE_DEVICE Vec<T, N> get() const {
    int same[4];
    MEGALITE_UNROLL
    for (int i = 0; i < 4; ++i) same[i] = opaque(words[i]);
    Vec<T, N> x;
    memcpy(&x, same, 16);
    return x;
  }
};

}  // namespace megalite
