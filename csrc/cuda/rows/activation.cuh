// Activation of rows, with bias and gate, and its gradient: one pass each.
//
// Shapes:    up, gate [R, F], their biases [F] -> out [R, F]; dout [R, F] -> dup, dgate [R, F], and
//            parts of the biases' gradients [P, F] fp32, which column_sums adds up.
// Requires:  contiguous rows; has_vectors only if F is whole vectors of 16 bytes, at aligned
//            addresses.
// Mapping:   forward: a thread a vector, a block one row or several short ones. Gradient: a block
//            has kActivationThreads vectors of columns and every num_parts-th row, so a thread
//            keeps the sums of its columns in registers.
// Numerics:  fp32 inside, one rounding at the end; sums are in a fixed order.
// Cost:      forward reads up and gate, writes out; the gradient reads dout, up and gate, writes
//            dup and dgate; 8 P F bytes more for each bias. 2 or 3 MUFU an element, erff for GELU.
// Source:    Shazeer 2020, arXiv:2002.05202; Hendrycks & Gimpel 2016, arXiv:1606.08415.
// Tested by: tests/kernels/test_activation.py.
#pragma once

#include "cuda/rows/exponential.cuh"
#include "cuda/rows/params.cuh"
#include "cuda/rows/vectors.cuh"

namespace megalite {

/// An activation and its slope at one place.
struct Slope {
  float value, slope;
};

/// 1 / (1 + e^-x), and what is missing to 1.
struct Logistic {
  float share, rest;
};
MEGALITE_DEVICE Logistic logistic(float x) {
  const float e = exp_of(x < -87.0f ? 87.0f : -x);  // beyond it e^-x overflows
  const float share = reciprocal_approx(1.0f + e);
  return {share, e * share};
}

MEGALITE_DEVICE Slope activated(Activation kind, float x) {
  if (kind == Activation::relu) return {x < 0.0f ? 0.0f : x, x > 0.0f ? 1.0f : 0.0f};
  if (kind == Activation::gelu) {
    const float share = 0.5f * (1.0f + erff(x * 0.707106781f));  // of a normal variable below x
    return {x * share, share + x * 0.398942280f * exp_of(-0.5f * x * x)};
  }
  if (kind == Activation::silu) {
    const Logistic at = logistic(x);
    return {x * at.share, at.share * (1.0f + x * at.rest)};
  }
  // tanh u = 2 logistic(2 u) - 1
  const float bounded = fminf(fmaxf(x, -30.0f), 30.0f);  // beyond it f is x or 0
  const float cubic = 0.0356774081f * bounded * bounded;
  const float twice = 2.0f * bounded * (0.797884561f + cubic);
  const Logistic at = logistic(twice);
  const float inner = 2.0f * (0.797884561f + 3.0f * cubic);
  return {x * at.share, at.share + bounded * at.share * at.rest * inner};
}

/// N elements of a product, from `at` on, with its bias from `column` on.
template <int N, class T>
MEGALITE_DEVICE Vec<float, N> with_bias(Global<const T> product, Global<const T> bias, int64_t at,
                                        int column) {
  Vec<float, N> x = widened(load_vec<N>(product, at));
  if (!bias) return x;
  const Vec<float, N> more = widened(load_vec<N>(bias, column));
  MEGALITE_UNROLL
  for (int e = 0; e < N; ++e) x.v[e] += more.v[e];
  return x;
}

template <class T, int N>
MEGALITE_KERNEL(kActivationThreads, 4)
void activation_kernel(ActivationParams<T> p, int rows_per_block) {
  const int units = p.width / N;  // of a row
  for (int i = thread_x(); i < rows_per_block * units; i += block_dim_x()) {
    const int64_t row = static_cast<int64_t>(block_x()) * rows_per_block + i / units;
    if (row >= p.num_rows) return;
    const int column = i % units * N;
    const int64_t at = row * p.width + column;
    Vec<float, N> x = with_bias<N>(p.up, p.up_bias, at, column);
    if (p.gate) {
      const Vec<float, N> gate = with_bias<N>(p.gate, p.gate_bias, at, column);
      MEGALITE_UNROLL
      for (int e = 0; e < N; ++e) x.v[e] *= activated(p.kind, gate.v[e]).value;
    } else {
      MEGALITE_UNROLL
      for (int e = 0; e < N; ++e) x.v[e] = activated(p.kind, x.v[e]).value;
    }
    store_vec(p.out, at, narrowed<T>(x));
  }
}

/// Write N sums of columns to a part, if it is there.
template <int N>
MEGALITE_DEVICE void store_sums(Global<float> parts, int64_t at, const Vec<float, N>& sums) {
  constexpr int kStep = N < 4 ? N : 4;
  if (!parts) return;
  MEGALITE_UNROLL
  for (int e = 0; e < N; e += kStep) {
    Vec<float, kStep> some;
    MEGALITE_UNROLL
    for (int f = 0; f < kStep; ++f) some.v[f] = sums.v[e + f];
    store_vec(parts, at + e, some);
  }
}

template <class T, int N>
MEGALITE_KERNEL(kActivationThreads, 4)
void activation_gradient_kernel(ActivationGradientParams<T> p) {
  const int column = (block_x() * kActivationThreads + thread_x()) * N;
  if (column >= p.width) return;
  Vec<float, N> up_sums = {}, gate_sums = {};
  for (int64_t row = block_y(); row < p.num_rows; row += p.num_parts) {
    const int64_t at = row * p.width + column;
    const Vec<float, N> dout = widened(load_vec<N>(p.dout, at));
    Vec<float, N> up = with_bias<N>(p.up, p.up_bias, at, column), gate;
    if (p.gate) gate = with_bias<N>(p.gate, p.gate_bias, at, column);
    MEGALITE_UNROLL
    for (int e = 0; e < N; ++e) {
      const Slope act = activated(p.kind, p.gate ? gate.v[e] : up.v[e]);
      gate.v[e] = dout.v[e] * up.v[e] * act.slope;
      up.v[e] = dout.v[e] * (p.gate ? act.value : act.slope);
      up_sums.v[e] += up.v[e], gate_sums.v[e] += gate.v[e];
    }
    store_vec(p.dup, at, narrowed<T>(up));
    if (p.gate) store_vec(p.dgate, at, narrowed<T>(gate));
  }
  const int64_t part = static_cast<int64_t>(block_y()) * p.width + column;
  store_sums(p.up_parts, part, up_sums);
  store_sums(p.gate_parts, part, gate_sums);
}

template <class T, int N>
void launch_activation(const ActivationParams<T>& p, Stream stream) {
  const int units = p.width / N;
  const int rows_per_block = units < kActivationThreads ? kActivationThreads / units : 1;
  const int64_t blocks = (p.num_rows + rows_per_block - 1) / rows_per_block;
  launch(
      LaunchConfig{"activation", {static_cast<uint32_t>(blocks)}, {kActivationThreads}, 0, stream},
      activation_kernel<T, N>, p, rows_per_block);
}

template <class T>
void activation(const ActivationParams<T>& p, Stream stream) {
  if (p.num_rows == 0 || p.width == 0) return;
  if (p.has_vectors) {
    launch_activation<T, 16 / static_cast<int>(sizeof(T))>(p, stream);
  } else {
    launch_activation<T, 1>(p, stream);
  }
}

template <class T, int N>
void launch_activation_gradient(const ActivationGradientParams<T>& p, Stream stream) {
  constexpr int kColumns = kActivationThreads * N;
  const uint32_t strips = (p.width + kColumns - 1) / kColumns;
  launch(LaunchConfig{"activation_backward",
                      {strips, static_cast<uint32_t>(p.num_parts)},
                      {kActivationThreads},
                      0,
                      stream},
         activation_gradient_kernel<T, N>, p);
}

template <class T>
void activation_backward(const ActivationGradientParams<T>& p, Stream stream) {
  if (p.num_rows == 0 || p.width == 0) return;
  if (p.has_vectors) {
    launch_activation_gradient<T, 16 / static_cast<int>(sizeof(T))>(p, stream);
  } else {
    launch_activation_gradient<T, 1>(p, stream);
  }
}

}  // namespace megalite
