// Small correct kernels: matrix products through both tensor-core paths, sums, bank conflicts.
#pragma once

#include "cuda/intrinsics.cuh"

namespace megalite::products {

/// One warp a 16 x 16 tile of C; K in steps of 32, two stages of cp.async.
template <class T>
void sm80(Global<const T> a, Global<const T> b, Global<float> c, int N, int K) {
  constexpr int kStep = 32, kTile = 16 * kStep;
  auto s = shared_view<T>(0, 4 * kTile);
  const int row = block_x() * 16, col = block_y() * 16, t = lane();
  const auto fetch = [&](int k, int stage) {
    for (int i = t; i < kTile / 8; i += 32) {
      const int r = i / 4, offset = r * kStep + (i % 4 ^ r / 2 % 4) * 8;
      cp_async16(s, stage * 2 * kTile + offset, a, int64_t{row + r} * K + k + i % 4 * 8, true);
      cp_async16(s, (stage * 2 + 1) * kTile + offset, b, int64_t{col + r} * K + k + i % 4 * 8,
                 true);
    }
    cp_async_commit();
  };
  float d[2][4] = {};
  fetch(0, 0);
  for (int k = 0, stage = 0; k < K; k += kStep, stage ^= 1) {
    if (k + kStep < K) {
      fetch(k + kStep, stage ^ 1);
      cp_async_wait<1>();
    } else {
      cp_async_wait<0>();
    }
    syncwarp();
    for (int chunk = 0; chunk < 4; chunk += 2) {
      uint32_t ra[4], rb[4];
      const int r = t % 16, swizzled = r * kStep + ((chunk + t / 16) ^ r / 2 % 4) * 8;
      ldmatrix_x4(ra, s, stage * 2 * kTile + swizzled);
      ldmatrix_x4(rb, s, (stage * 2 + 1) * kTile + swizzled);
      const uint32_t left[2] = {rb[0], rb[2]}, right[2] = {rb[1], rb[3]};
      mma_m16n8k16<T>(d[0], ra, left);
      mma_m16n8k16<T>(d[1], ra, right);
    }
    syncwarp();
  }
  for (int n = 0; n < 2; ++n) {
    for (int e = 0; e < 4; ++e) {
      const int64_t r = row + t / 4 + e / 2 * 8;
      c[r * N + col + n * 8 + t % 4 * 2 + e % 2] = d[n][e];
    }
  }
}

template <class T>
void launch_sm80(const uint16_t* a, const uint16_t* b, float* c, int M, int N, int K) {
  const auto* pa = reinterpret_cast<const T*>(a);
  const auto* pb = reinterpret_cast<const T*>(b);
  const Dim3 grid{static_cast<uint32_t>(M / 16), static_cast<uint32_t>(N / 16)};
  launch(LaunchConfig{"sm80", grid, {32}, 4 * 16 * 32 * 2}, sm80<T>,
         Global<const T>(pa, int64_t{M} * K), Global<const T>(pb, int64_t{N} * K),
         Global<float>(c, int64_t{M} * N), N, K);
}

/// c = a b, 8 x 8 x 4, from row-major a [8, 4] and b [4, 8], the fragments loaded as the PTX manual
/// says.
template <Layout A, Layout B>
void sm70(Global<const half> a, Global<const half> b, Global<float> c) {
  const int low = lane() % 4, high = lane() / 16 * 4, t = low + high;
  uint32_t ra[2] = {}, rb[2] = {};
  for (int e = 0; e < 4; ++e) {
    const half x = A == Layout::row ? a[t * 4 + e] : a[(e + high) * 4 + low];
    const half y = B == Layout::col ? b[e * 8 + t] : b[low * 8 + e + high];
    ra[e / 2] |= static_cast<uint32_t>(x.bits) << (e % 2 * 16);
    rb[e / 2] |= static_cast<uint32_t>(y.bits) << (e % 2 * 16);
  }
  float d[8] = {};
  mma_m8n8k4<A, B>(d, ra, rb);
  const int pair = lane() / 4 % 4;
  for (int e = 0; e < 8; ++e) {
    const int row = (t & 1) + (e & 2) + (t & 4), col = (e & 1) + (t & 2) + (e & 4);
    c[pair * 64 + row * 8 + col] = d[e];
  }
}

inline void launch_sm70(int layouts, const uint16_t* a, const uint16_t* b, float* c) {
  void (*const kernels[])(Global<const half>, Global<const half>, Global<float>) = {
      sm70<Layout::row, Layout::row>, sm70<Layout::row, Layout::col>,
      sm70<Layout::col, Layout::row>, sm70<Layout::col, Layout::col>};
  launch(LaunchConfig{"sm70", {1}, {32}}, kernels[layouts],
         Global<const half>(reinterpret_cast<const half*>(a), 32),
         Global<const half>(reinterpret_cast<const half*>(b), 32), Global<float>(c, 256));
}

inline void sums(Global<const float> x, Global<float> y) {
  auto total = shared_view<float>(0, 1);
  auto parts = shared_view<float>(16, 16);
  if (thread_x() == 0) total[0] = 0.0f;
  syncthreads();
  float value = x[thread_x()];
  atomic_add(total, 0, value);
  for (int delta = 16; delta > 0; delta /= 2) value += shfl_down(value, delta);
  if (lane() == 0) parts[warp()] = value;
  syncthreads();
  if (thread_x() != 0) return;
  float sum = 0.0f;
  for (int w = 0; w < 16; ++w) sum += parts[w];
  y[0] = total[0];
  y[1] = sum;
}

/// 16 rows of `stride` halves: ldmatrix reads 32 rows of 8 halves, then each lane reads the first
/// word of its row.
inline void banks(int stride, Global<float> y) {
  auto s = shared_view<half>(0, 32 * 64);
  const Vec<half, 8> zeros = {};
  for (int i = lane(); i < 32 * 64 / 8; i += 32) store_vec(s, i * 8, zeros);
  syncwarp();
  uint32_t r[4];
  ldmatrix_x4(r, s, lane() * stride);
  y[lane()] = s.template as<float>().load(lane() * stride / 2) + as_float(r[0]);
}

inline void nothing() {}

}  // namespace megalite::products
