// Residual addition, dropout and norm of rows in one pass.
//
// Shapes:    x, update [R, D], weight, bias [D] -> sum, out [R, D], mean, inverse [R] fp32.
// Requires:  contiguous rows, at any alignment.
// Mapping:   a row is held by the registers of its lanes: a part of a warp, with several rows a
//            block, or a whole block. Over a row of more than kMostLanes x kMostHeld elements, or of
//            no whole vectors, a block goes again for each sum, by then in the caches.
// Numerics:  sum = residual_scale x + dropped update, rounded to T; then what PyTorch's norm gives
//            of it: fp32, the variance from centred values, one rounding at the end.
// Cost:      reads x and update, writes sum and out, once; the weights come from caches.
// Source:    Zhang & Sennrich 2019, arXiv:1910.07467; Ba et al. 2016, arXiv:1607.06450.
// Tested by: tests/kernels/test_norm.py.
#pragma once

#include "cuda/rows/dropout.cuh"
#include "cuda/rows/norm_rows.cuh"

namespace megalite {

/// residual_scale x + dropped update, of N elements from `at` on.
template <class T, int N>
MEGALITE_DEVICE Vec<T, N> added(const NormRows& rows, const RowPlace& place, int at,
                                const Vec<T, N>& x, const Vec<T, N>& update) {
  Vec<float, N> more = widened(update);
  const Vec<float, N> before = widened(x);
  if (rows.drops.sample_ids) drop(rows.drops, place, at, more);
  MEGALITE_UNROLL
  for (int e = 0; e < N; ++e) more.v[e] += rows.residual_scale * before.v[e];
  return narrowed<T>(more);
}

/// N elements of a normal row, from `at` on.
template <int N, class T>
MEGALITE_DEVICE Vec<T, N> normal(const NormParams<T>& p, int at, const Vec<T, N>& sum, float mean,
                                 float inverse) {
  Vec<float, N> x = widened(sum);
  const Vec<float, N> scale = widened(load_vec<N>(p.weight, at));
  MEGALITE_UNROLL
  for (int e = 0; e < N; ++e) {
    x.v[e] = (x.v[e] - mean) * inverse * (scale.v[e] + p.rows.weight_offset);
  }
  if (p.bias) {
    const Vec<float, N> more = widened(load_vec<N>(p.bias, at));
    MEGALITE_UNROLL
    for (int e = 0; e < N; ++e) x.v[e] += more.v[e];
  }
  return narrowed<T>(x);
}

MEGALITE_DEVICE RowPlace place_if_dropped(const NormRows& rows, int64_t row) {
  return rows.drops.sample_ids ? place_of(rows.drops, row) : RowPlace{};
}

template <class T, int E>
MEGALITE_DEVICE void norm_held(const NormParams<T>& p) {
  using Part = RowPart<T, E>;
  const RowThread thread = row_thread(p.rows);
  const int64_t row = static_cast<int64_t>(block_x()) * thread.rows_per_block + thread.row_in_block;
  const bool is_there = row < p.rows.count;
  const int width = p.rows.width, lanes = p.rows.lanes;
  const int64_t first = row * width;
  Part sum;
  sum.load(thread, p.x.at(first), width, is_there);
  if (p.update) {
    Part update;
    update.load(thread, p.update.at(first), width, is_there);
    const RowPlace place = is_there ? place_if_dropped(p.rows, row) : RowPlace{};
    MEGALITE_UNROLL
    for (int k = 0; k < Part::K; ++k) {
      const int at = Part::column(thread, k);
      const Vec<T, Part::N> both =
          added(p.rows, place, at, sum.vectors[k].get(), update.vectors[k].get());
      if (is_there && at < width) store_vec(p.sum, first + at, both);
      sum.vectors[k].set(both);
    }
  }
  const auto over_elements = [&](const auto& value) {
    float total = 0.0f;
    MEGALITE_UNROLL
    for (int k = 0; k < Part::K; ++k) {
      if (Part::column(thread, k) >= width) continue;
      const Vec<float, Part::N> x = widened(sum.vectors[k].get());
      MEGALITE_UNROLL
      for (int e = 0; e < Part::N; ++e) total += value(x.v[e]);
    }
    return total;
  };
  float mean = 0.0f;
  if (p.rows.centred) {
    mean = row_sum(over_elements([](float x) { return x; }), lanes, 0) / width;
  }
  const float square = over_elements([&](float x) { return (x - mean) * (x - mean); });
  const float inverse = rsqrt_approx(row_sum(square, lanes, 1) / width + p.eps);
  if (!is_there) return;
  MEGALITE_UNROLL
  for (int k = 0; k < Part::K; ++k) {
    const int at = Part::column(thread, k);
    if (at >= width) continue;
    store_vec(p.out, first + at, normal<Part::N>(p, at, sum.vectors[k].get(), mean, inverse));
  }
  if (thread.index > 0) return;
  if (p.rows.centred) p.mean.store(row, mean);
  p.inverse.store(row, inverse);
}

/// A block a row, N elements at a time.
template <int N, class T>
MEGALITE_DEVICE void norm_again(const NormParams<T>& p) {
  const int64_t row = block_x(), first = row * p.rows.width;
  const int width = p.rows.width, lanes = p.rows.lanes;
  const auto each = [&](const auto& work) {
    for (int i = N * thread_x(); i < width; i += N * lanes) work(i);
  };
  if (p.update) {
    const RowPlace place = place_if_dropped(p.rows, row);
    each([&](int i) {
      const Vec<T, N> x = load_vec<N>(p.x, first + i), more = load_vec<N>(p.update, first + i);
      store_vec(p.sum, first + i, added(p.rows, place, i, x, more));
    });
  }
  const auto elements = [&](int i) {  // a thread reads what it wrote itself
    return p.update ? load_vec<N>(p.sum, first + i) : load_vec<N>(p.x, first + i);
  };
  float mean = 0.0f, square = 0.0f;
  if (p.rows.centred) {
    each([&](int i) {
      const Vec<float, N> x = widened(elements(i));
      MEGALITE_UNROLL
      for (int e = 0; e < N; ++e) mean += x.v[e];
    });
    mean = row_sum(mean, lanes, 0) / width;
  }
  each([&](int i) {
    const Vec<float, N> x = widened(elements(i));
    MEGALITE_UNROLL
    for (int e = 0; e < N; ++e) square += (x.v[e] - mean) * (x.v[e] - mean);
  });
  const float inverse = rsqrt_approx(row_sum(square, lanes, 1) / width + p.eps);
  each([&](int i) { store_vec(p.out, first + i, normal<N>(p, i, elements(i), mean, inverse)); });
  if (thread_x() > 0) return;
  if (p.rows.centred) p.mean.store(row, mean);
  p.inverse.store(row, inverse);
}

template <class T, int E, int N>
MEGALITE_KERNEL(kMostLanes, E == 8 ? 2 : 1)
void norm_kernel(NormParams<T> p) {
  if constexpr (E > 0) {
    norm_held<T, E>(p);
  } else {
    norm_again<N>(p);
  }
}

template <class T>
void add_norm(const NormParams<T>& p, Stream stream) {
  if (p.rows.count == 0 || p.rows.width == 0) return;
  const uint32_t threads = norm_block(p.rows);
  const int64_t rows_per_block = threads / p.rows.lanes;
  const int64_t blocks = (p.rows.count + rows_per_block - 1) / rows_per_block;
  const LaunchConfig config{
      "add_norm", {static_cast<uint32_t>(blocks)}, {threads}, kRowSumBytes<1>, stream};
  with_access<T>(p.rows, [&](auto access) {
    using Way = decltype(access);
    launch(config, norm_kernel<T, Way::held, Way::vector>, p);
  });
}

}  // namespace megalite
