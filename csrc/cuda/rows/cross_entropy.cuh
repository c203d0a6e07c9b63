// Cross-entropy of rows of logits: statistics in one pass, the gradient in another.
//
// Shapes:    logits [T, V] -> statistics [5, T] fp32 (maximum, sum of exponentials, target, sum,
//            sum weighted by the exponentials); gradient [T, V], which may be the logits' memory.
// Requires:  contiguous rows; T is half, bfloat16 or float. A row may start at any alignment.
// Mapping:   statistics: one block per row. gradient: one block per kGradientSlice elements of a
//            row. Threads make 16-byte accesses, and single-element ones at a row's unaligned ends.
// Numerics:  fp32 inside; sums are of exp(x - running maximum), rescaled when the maximum grows, in
//            a fixed order: bitwise reproducible.
// Cost:      reads T V elements; the gradient writes as many. 1 MUFU per element.
// Source:    Milakov & Gimelshein 2018, arXiv:1805.02867 (one-pass softmax statistics).
// Tested by: tests/kernels/test_rows.py.
#pragma once

#include "cuda/rows/exponential.cuh"
#include "cuda/rows/params.cuh"

namespace megalite {

inline constexpr int kLogitThreads = 256;  // 8 blocks per SM hide the latency of memory
inline constexpr int64_t kGradientSlice = 1 << 15;

/// Call each(i, values) for elements [first, last) of `row`, divided among the block's threads.
/// `values` starts at element i and is a Vec<float, 1>, or as many elements as 16 bytes of T hold.
/// `misalignment` is that of row[0].
template <class T, class Each>
MEGALITE_DEVICE void each_vector(Global<T> row, int misalignment, int64_t first, int64_t last,
                                 const Each& each) {
  constexpr int N = 16 / sizeof(T);
  int64_t head = first + (N - (misalignment + first) % N) % N;
  head = head < last ? head : last;
  const int64_t tail = last - (last - head) % N;
  const auto single = [&](int64_t i) { each(i, Vec<float, 1>{{to_float(row.load(i))}}); };
  if (first + thread_x() < head) single(first + thread_x());
  for (int64_t i = head + N * thread_x(); i < tail; i += N * block_dim_x()) {
    const Vec<T, N> narrow = load_vec<N>(row, i);
    Vec<float, N> values;
    MEGALITE_UNROLL
    for (int e = 0; e < N; ++e) values.v[e] = to_float(narrow.v[e]);
    each(i, values);
  }
  if (tail + thread_x() < last) single(tail + thread_x());
}

template <class T>
MEGALITE_DEVICE void store_values(Global<T> row, int64_t i, const Vec<float, 1>& values) {
  row.store(i, from_float<T>(values.v[0]));
}
template <class T, int N>
MEGALITE_DEVICE void store_values(Global<T> row, int64_t i, const Vec<float, N>& values) {
  Vec<T, N> narrow;
  MEGALITE_UNROLL
  for (int e = 0; e < N; ++e) narrow.v[e] = from_float<T>(values.v[e]);
  store_vec(row, i, narrow);
}

MEGALITE_DEVICE float infinity() { return as_float(0x7f800000u); }

/// Sums over part of a row, the exponentials relative to its maximum, `top`.
struct RowSums {
  float top, exponentials, total, weighted;

  template <int N>
  MEGALITE_DEVICE void add(const Vec<float, N>& x) {
    float largest = top;
    MEGALITE_UNROLL
    for (int e = 0; e < N; ++e) largest = x.v[e] > largest ? x.v[e] : largest;
    raise(largest);
    const float shift = top == -infinity() ? 0.0f : top;
    MEGALITE_UNROLL
    for (int e = 0; e < N; ++e) {
      const float exponential = exp_of(x.v[e] - shift);
      exponentials += exponential;
      total += x.v[e];
      weighted += exponential * x.v[e];
    }
  }
  MEGALITE_DEVICE void merge(RowSums other) {
    const float largest = other.top > top ? other.top : top;
    raise(largest), other.raise(largest);
    exponentials += other.exponentials, total += other.total, weighted += other.weighted;
  }

 private:
  MEGALITE_DEVICE void raise(float largest) {
    if (largest == top) return;
    const float factor = exp_of(top - largest);
    exponentials *= factor, weighted *= factor;
    top = largest;
  }
};

MEGALITE_DEVICE RowSums warp_sum(RowSums sums) {
  MEGALITE_UNROLL
  for (int lanes = kWarpSize / 2; lanes > 0; lanes /= 2) {
    sums.merge({shfl_xor(sums.top, lanes), shfl_xor(sums.exponentials, lanes),
                shfl_xor(sums.total, lanes), shfl_xor(sums.weighted, lanes)});
  }
  return sums;
}

template <class T>
MEGALITE_KERNEL(kLogitThreads, 4)
void statistics_kernel(LogitParams<T> p) {
  constexpr int kWarps = kLogitThreads / kWarpSize;
  const int64_t row = block_x();
  const Global<T> logits = p.logits.at(row * p.width);
  RowSums sums = {-infinity(), 0.0f, 0.0f, 0.0f};
  const int misalignment = static_cast<int>((p.misalignment + row * p.width) % 16);
  each_vector(logits, misalignment, 0, p.width, [&](int64_t, const auto& x) { sums.add(x); });
  sums = warp_sum(sums);
  const Shared<float> parts = shared_view<float>(0, 4 * kWarps);
  if (lane() == 0) {
    store_vec(parts, 4 * warp(),
              Vec<float, 4>{{sums.top, sums.exponentials, sums.total, sums.weighted}});
  }
  syncthreads();
  if (thread_x() > 0) return;
  for (int w = 1; w < kWarps; ++w) {
    const Vec<float, 4> part = load_vec<4>(parts, 4 * w);
    sums.merge({part.v[0], part.v[1], part.v[2], part.v[3]});
  }
  const int64_t index = p.labels[row] - p.offset;
  const float target = index >= 0 && index < p.width ? to_float(logits.load(index)) : 0.0f;
  const float results[5] = {sums.top, sums.exponentials, target, sums.total, sums.weighted};
  MEGALITE_UNROLL
  for (int i = 0; i < 5; ++i) p.statistics.store(i * p.num_rows + row, results[i]);
}

/// gradient = upstream ((1 + 2 z lse) softmax - smoothing / V - (1 - smoothing) [v = label])
template <class T>
MEGALITE_KERNEL(kLogitThreads, 4)
void gradient_kernel(LogitParams<T> p) {
  const int64_t row = block_x(), first = block_y() * kGradientSlice;
  const int64_t last = first + kGradientSlice < p.width ? first + kGradientSlice : p.width;
  const Global<T> logits = p.logits.at(row * p.width), gradient = p.gradient.at(row * p.width);
  const float upstream = p.upstream[row], lse = p.lse[row];
  const float factor = upstream * (1.0f + 2.0f * p.z_loss * lse);
  const float even = upstream * p.label_smoothing / static_cast<float>(p.vocabulary);
  const float target = (1.0f - p.label_smoothing) * upstream;
  const int64_t index = p.labels[row] - p.offset;
  const int misalignment = static_cast<int>((p.misalignment + row * p.width) % 16);
  each_vector(logits, misalignment, first, last, [&](int64_t i, auto x) {
    constexpr int N = sizeof(x) / sizeof(float);
    MEGALITE_UNROLL
    for (int e = 0; e < N; ++e) {
      const float value = factor * exp_of(x.v[e] - lse) - even;
      x.v[e] = upstream == 0.0f ? 0.0f : (i + e == index ? value - target : value);
    }
    store_values(gradient, i, x);
  });
}

template <class T>
void logit_statistics(const LogitParams<T>& p, Stream stream) {
  constexpr int kShared = 4 * kLogitThreads / kWarpSize * static_cast<int>(sizeof(float));
  if (p.num_rows == 0) return;
  launch(LaunchConfig{"logit_statistics",
                      {static_cast<uint32_t>(p.num_rows)},
                      {kLogitThreads},
                      kShared,
                      stream},
         statistics_kernel<T>, p);
}

template <class T>
void logit_gradient(const LogitParams<T>& p, Stream stream) {
  const int64_t slices = (p.width + kGradientSlice - 1) / kGradientSlice;
  if (p.num_rows == 0 || slices == 0) return;
  launch(LaunchConfig{"logit_gradient",
                      {static_cast<uint32_t>(p.num_rows), static_cast<uint32_t>(slices)},
                      {kLogitThreads},
                      0,
                      stream},
         gradient_kernel<T>, p);
}

}  // namespace megalite
