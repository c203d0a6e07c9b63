// The gradient of residual addition, dropout and norm in one pass.
//
// Shapes:    dout, dsum, sum [R, D], weight [D], mean, inverse [R] fp32 -> dx, dupdate [R, D], and
//            parts of the weights' gradients [P, D] fp32, which column_sums adds up.
// Requires:  as norm.cuh. P = num_blocks, times the warps of a block where it has several rows.
// Mapping:   as norm.cuh; a block takes every num_blocks-th group of rows. A thread keeps the sums
//            of its columns: the weight's in registers, the bias's in its own places of shared
//            memory; where rows are read again, both in the block's part of global memory.
// Numerics:  fp32, one rounding at the end. With n = (x - mean) r and g = w dout:
//            dsum' = dsum + r (g - n mean(g n) - mean(g)), the last only if centred;
//            dx = residual_scale dsum', dupdate = dropped dsum'. Sums are in a fixed order.
// Cost:      reads dout, dsum and sum, writes dx, once; 8 P D bytes more for each weight.
// Tested by: tests/kernels/test_norm.py.
#pragma once

#include "cuda/rows/dropout.cuh"
#include "cuda/rows/norm_rows.cuh"

namespace megalite {

/// What a row's elements share.
struct RowGradient {
  float mean, inverse;
  float along, level;  // means of g n and of g
};

template <class T>
MEGALITE_DEVICE RowPlace place_of_update(const NormGradientParams<T>& p, int64_t row) {
  return p.dupdate && p.rows.drops.sample_ids ? place_of(p.rows.drops, row) : RowPlace{};
}

/// dx and dupdate of N elements of a row, from `at` on; `i` is that of the first in memory.
template <int N, class T>
MEGALITE_DEVICE void store_gradient(const NormGradientParams<T>& p, const RowPlace& place,
                                    const RowGradient& row, int at, int64_t i,
                                    const Vec<T, N>& dout, const Vec<T, N>& sum) {
  const Vec<float, N> scale = widened(load_vec<N>(p.weight, at));
  Vec<float, N> gradient = widened(dout), x = widened(sum);
  MEGALITE_UNROLL
  for (int e = 0; e < N; ++e) {
    const float normal = (x.v[e] - row.mean) * row.inverse;
    const float g = gradient.v[e] * (scale.v[e] + p.rows.weight_offset);
    gradient.v[e] = row.inverse * (g - normal * row.along - row.level);
  }
  if (p.dsum) {
    const Vec<float, N> more = widened(load_vec<N>(p.dsum, i));
    MEGALITE_UNROLL
    for (int e = 0; e < N; ++e) gradient.v[e] += more.v[e];
  }
  MEGALITE_UNROLL
  for (int e = 0; e < N; ++e) x.v[e] = p.rows.residual_scale * gradient.v[e];
  store_vec(p.dx, i, narrowed<T>(x));
  if (!p.dupdate) return;
  if (p.rows.drops.sample_ids) drop(p.rows.drops, place, at, gradient);
  store_vec(p.dupdate, i, narrowed<T>(gradient));
}

/// Add N elements to the sums over a row, (g n, g), and to the weight's over columns.
template <int N, class T>
MEGALITE_DEVICE void add_to_sums(const NormGradientParams<T>& p, const RowGradient& row, int at,
                                 const Vec<T, N>& dout, const Vec<T, N>& sum, float (&over_row)[2],
                                 float* dweight) {
  const Vec<float, N> scale = widened(load_vec<N>(p.weight, at));
  MEGALITE_UNROLL
  for (int e = 0; e < N; ++e) {
    const float gradient = to_float(dout.v[e]);
    const float normal = (to_float(sum.v[e]) - row.mean) * row.inverse;
    const float g = gradient * (scale.v[e] + p.rows.weight_offset);
    over_row[0] += g * normal, over_row[1] += g;
    dweight[e] += gradient * normal;
  }
}

template <class T>
MEGALITE_DEVICE RowGradient row_gradient(const NormGradientParams<T>& p, int64_t row) {
  return {p.rows.centred ? p.mean[row] : 0.0f, p.inverse[row], 0.0f, 0.0f};
}

template <class T>
MEGALITE_DEVICE void finish_sums(const NormGradientParams<T>& p, float (&sums)[2], int turn,
                                 RowGradient& row) {
  row_sums(sums, p.rows.lanes, turn);
  row.along = sums[0] / p.rows.width;
  row.level = p.rows.centred ? sums[1] / p.rows.width : 0.0f;
}

/// Write a thread's sums over columns; where a warp has several rows, its lanes add theirs first.
template <class T, int E>
MEGALITE_DEVICE void store_parts(const NormGradientParams<T>& p, const RowThread& thread,
                                 Global<float> parts, float (&sums)[E]) {
  using Part = RowPart<T, E>;
  MEGALITE_UNROLL
  for (int i = 0; i < E; ++i) {
    for (int step = thread.lanes; step < kWarpSize; step *= 2) sums[i] += shfl_xor(sums[i], step);
  }
  if (lane() >= thread.lanes) return;
  const bool is_short = thread.lanes <= kWarpSize;
  const int64_t part = is_short ? block_x() * (block_dim_x() / kWarpSize) + warp() : block_x();
  MEGALITE_UNROLL
  for (int k = 0; k < Part::K; ++k) {
    const int at = Part::column(thread, k);
    if (at >= p.rows.width) continue;
    MEGALITE_UNROLL
    for (int e = 0; e < Part::N; e += 4) {
      const float* four = sums + k * Part::N + e;
      const Vec<float, 4> values = {{four[0], four[1], four[2], four[3]}};
      store_vec(parts, part * p.rows.width + at + e, values);
    }
  }
}

/// A thread's sums over columns of dout, for the bias, in shared memory behind that of `row_sums`.
template <int E>
struct BiasSums {
  MEGALITE_DEVICE static Shared<float> view() {
    return shared_view<float>(kRowSumBytes<2>, E * block_dim_x());
  }
  /// The place of this thread's elements 4 q to 4 q + 3.
  MEGALITE_DEVICE static int place(int q) { return (q * block_dim_x() + thread_x()) * 4; }
  MEGALITE_DEVICE static void clear() {
    MEGALITE_UNROLL
    for (int q = 0; q < E / 4; ++q) store_vec(view(), place(q), Vec<float, 4>{});
  }
  /// Add N elements, of which the first is this thread's `first`.
  template <class T, int N>
  MEGALITE_DEVICE static void add(int first, const Vec<T, N>& dout) {
    MEGALITE_UNROLL
    for (int e = 0; e < N; e += 4) {
      const int at = place((first + e) / 4);
      Vec<float, 4> four = load_vec<4>(view(), at);
      MEGALITE_UNROLL
      for (int i = 0; i < 4; ++i) four.v[i] += to_float(dout.v[e + i]);
      store_vec(view(), at, four);
    }
  }
  MEGALITE_DEVICE static void get(float (&values)[E]) {
    MEGALITE_UNROLL
    for (int q = 0; q < E / 4; ++q) {
      const Vec<float, 4> four = load_vec<4>(view(), place(q));
      MEGALITE_UNROLL
      for (int i = 0; i < 4; ++i) values[4 * q + i] = four.v[i];
    }
  }
};

template <class T, int E>
MEGALITE_DEVICE void norm_gradient_held(const NormGradientParams<T>& p) {
  using Part = RowPart<T, E>;
  const RowThread thread = row_thread(p.rows);
  const int width = p.rows.width;
  const bool has_bias = static_cast<bool>(p.bias_parts);
  float sums_of_columns[E] = {};  // of the weight
  using DBias = BiasSums<E>;
  if (has_bias) DBias::clear();
  const int64_t step = static_cast<int64_t>(p.num_blocks) * thread.rows_per_block;
  int turn = 0;
  for (int64_t base = static_cast<int64_t>(block_x()) * thread.rows_per_block; base < p.rows.count;
       base += step, turn = 1 - turn) {
    const int64_t row = base + thread.row_in_block, first = row * width;
    const bool is_there = row < p.rows.count;
    RowGradient shared = is_there ? row_gradient(p, row) : RowGradient{};
    float sums[2] = {};
    Part dout, sum;
    dout.load(thread, p.dout.at(first), width, is_there);
    sum.load(thread, p.sum.at(first), width, is_there);
    MEGALITE_UNROLL
    for (int k = 0; k < Part::K; ++k) {
      const int at = Part::column(thread, k);
      if (at >= width) continue;
      const Vec<T, Part::N> gradient = dout.vectors[k].get();
      if (has_bias) DBias::add(k * Part::N, gradient);
      add_to_sums<Part::N>(p, shared, at, gradient, sum.vectors[k].get(), sums,
                           sums_of_columns + k * Part::N);
    }
    finish_sums(p, sums, turn, shared);
    if (!is_there) continue;
    const RowPlace place = place_of_update(p, row);
    MEGALITE_UNROLL
    for (int k = 0; k < Part::K; ++k) {
      const int at = Part::column(thread, k);
      if (at >= width) continue;
      store_gradient<Part::N>(p, place, shared, at, first + at, dout.vectors[k].get(),
                              sum.vectors[k].get());
    }
  }
  store_parts<T, E>(p, thread, p.weight_parts, sums_of_columns);
  if (!has_bias) return;
  DBias::get(sums_of_columns);
  store_parts<T, E>(p, thread, p.bias_parts, sums_of_columns);
}

/// Add N values to those of a part in global memory; the first row's begin it.
template <int N>
MEGALITE_DEVICE void add_to_part(Global<float> part, int i, bool is_first, const float (&more)[N]) {
  constexpr int kStep = N < 4 ? N : 4;
  MEGALITE_UNROLL
  for (int e = 0; e < N; e += kStep) {
    Vec<float, kStep> total = {};
    if (!is_first) total = load_vec<kStep>(part, i + e);
    MEGALITE_UNROLL
    for (int f = 0; f < kStep; ++f) total.v[f] += more[e + f];
    store_vec(part, i + e, total);
  }
}

/// A block a row, N elements at a time.
template <int N, class T>
MEGALITE_DEVICE void norm_gradient_again(const NormGradientParams<T>& p) {
  const int width = p.rows.width, lanes = p.rows.lanes;
  const int64_t part = static_cast<int64_t>(block_x()) * width;
  int turn = 0;
  for (int64_t row = block_x(); row < p.rows.count; row += p.num_blocks, turn = 1 - turn) {
    const int64_t first = row * width;
    const bool is_first = row == block_x();
    RowGradient shared = row_gradient(p, row);
    float sums[2] = {};
    for (int i = N * thread_x(); i < width; i += N * lanes) {
      const Vec<T, N> dout = load_vec<N>(p.dout, first + i);
      float dweight[N] = {};
      add_to_sums<N>(p, shared, i, dout, load_vec<N>(p.sum, first + i), sums, dweight);
      add_to_part(p.weight_parts.at(part), i, is_first, dweight);
      if (!p.bias_parts) continue;
      MEGALITE_UNROLL
      for (int e = 0; e < N; ++e) dweight[e] = to_float(dout.v[e]);
      add_to_part(p.bias_parts.at(part), i, is_first, dweight);
    }
    finish_sums(p, sums, turn, shared);
    const RowPlace place = place_of_update(p, row);
    for (int i = N * thread_x(); i < width; i += N * lanes) {
      store_gradient<N>(p, place, shared, i, first + i, load_vec<N>(p.dout, first + i),
                        load_vec<N>(p.sum, first + i));
    }
  }
}

template <class T, int E, int N>
MEGALITE_KERNEL(kMostLanes, E == 8 && sizeof(T) == 2 ? 2 : 1)
void norm_gradient_kernel(NormGradientParams<T> p) {
  if constexpr (E > 0) {
    norm_gradient_held<T, E>(p);
  } else {
    norm_gradient_again<N>(p);
  }
}

template <class T>
void add_norm_backward(const NormGradientParams<T>& p, Stream stream) {
  if (p.rows.count == 0 || p.rows.width == 0) return;
  const uint32_t threads = norm_block(p.rows);
  with_access<T>(p.rows, [&](auto access) {
    using Way = decltype(access);
    const int sums = p.bias_parts ? Way::held * threads * static_cast<int>(sizeof(float)) : 0;
    launch(LaunchConfig{"add_norm_backward",
                        {static_cast<uint32_t>(p.num_blocks)},
                        {threads},
                        kRowSumBytes<2> + sums,
                        stream},
           norm_gradient_kernel<T, Way::held, Way::vector>, p);
  });
}

}  // namespace megalite
