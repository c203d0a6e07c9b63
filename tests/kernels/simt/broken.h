// Kernels that are wrong in one way each (Broken = true), and their correct twins. 128 threads,
// 4096 bytes of shared memory.
#pragma once

#include "cuda/intrinsics.cuh"

namespace megalite::broken {

using In = Global<const float>;
using Out = Global<float>;

template <bool Broken>
void missing_syncthreads(In x, Out y) {
  auto s = shared_view<float>(0, 128);
  const int t = thread_x();
  s[t] = x[t];
  if (!Broken) syncthreads();
  y[t] = s[(t + 32) % 128];
}

template <bool Broken>
void missing_syncwarp(In x, Out y) {
  auto s = shared_view<float>(0, 128);
  const int t = thread_x();
  s[t] = x[t];
  if (!Broken) syncwarp();
  y[t] = s[t ^ 1];
}

template <bool Broken>
void shuffle_is_no_memory_barrier(In x, Out y) {
  auto s = shared_view<float>(0, 128);
  const int t = thread_x();
  s[t] = x[t];
  const float other = shfl_xor(x[t], 1);
  if (!Broken) syncwarp();
  y[t] = s[t ^ 1] + other;
}

/// A buffer is filled again while some threads may still read what was in it.
template <bool Broken>
void write_after_read(In x, Out y) {
  auto s = shared_view<float>(0, 128);
  const int t = thread_x();
  s[t] = x[t];
  syncthreads();
  const float first = s[127 - t];
  if (!Broken) syncthreads();
  s[t] = 2.0f * x[t];
  syncthreads();
  y[t] = first + s[127 - t];
}

template <bool Broken>
void write_after_write(In x, Out y) {
  auto s = shared_view<float>(0, 128);
  const int t = thread_x();
  s[Broken ? t / 2 : t] = x[t];
  syncthreads();
  y[t] = s[Broken ? t / 2 : t];
}

template <bool Broken>
void atomic_and_plain(In x, Out y) {
  auto s = shared_view<int32_t>(0, 1);
  const int t = thread_x();
  if (t == 0) s[0] = 0;
  if (!Broken) syncthreads();
  atomic_add(s, 0, 1);
  syncthreads();
  y[t] = x[t] + static_cast<float>(s.load(0));
}

template <bool Broken>
void copy_without_wait(In x, Out y) {
  auto s = shared_view<float>(0, 512);
  const int t = thread_x();
  cp_async16(s, 4 * t, x, 4 * t, true);
  cp_async_commit();
  if (!Broken) cp_async_wait<0>();
  y[t] = s[4 * t + 3];
}

template <bool Broken>
void copy_waited_one_group_short(In x, Out y) {
  auto s = shared_view<float>(0, 1024);
  const int t = thread_x();
  for (int stage = 0; stage < 2; ++stage) {
    cp_async16(s, 512 * stage + 4 * t, x, 4 * t, t < 100);
    cp_async_commit();
  }
  cp_async_wait<1>();
  const float first = s[4 * t];
  if (Broken) {
    cp_async_wait<1>();
  } else {
    cp_async_wait<0>();
  }
  y[t] = first + s[512 + 4 * t];
}

template <bool Broken>
void copy_without_commit(In x, Out y) {
  auto s = shared_view<float>(0, 512);
  const int t = thread_x();
  cp_async16(s, 4 * t, x, 4 * t, true);
  if (!Broken) cp_async_commit();
  cp_async_wait<0>();
  y[t] = s[4 * t];
}

/// The wait makes a thread's own copies visible to itself; other threads need the barrier too.
template <bool Broken>
void copy_without_barrier(In x, Out y) {
  auto s = shared_view<float>(0, 512);
  const int t = thread_x();
  cp_async16(s, 4 * t, x, 4 * t, true);
  cp_async_commit();
  cp_async_wait<0>();
  if (!Broken) syncthreads();
  y[t] = s[511 - 4 * t];
}

/// The next tile is fetched into a buffer that is still being read.
template <bool Broken>
void copy_over_a_buffer_in_use(In x, Out y) {
  auto s = shared_view<float>(0, 512);
  const int t = thread_x();
  store_vec(s, 4 * t, load_vec<4>(x, 4 * t));
  syncthreads();
  const float value = s[511 - 4 * t];
  if (!Broken) syncthreads();
  cp_async16(s, 4 * t, x, 4 * t, true);
  cp_async_commit();
  cp_async_wait<0>();
  y[t] = value;
}

template <bool Broken>
void global_read_out_of_bounds(In x, Out y) {
  const int t = thread_x();
  y[t] = x[Broken ? 4 * t + 4 : 4 * t];
}

template <bool Broken>
void global_write_out_of_bounds(In x, Out y) {
  const int t = thread_x();
  if (Broken || t < 127) y.at(1).store(t, x[t]);
}

template <bool Broken>
void global_misaligned(In x, Out y) {
  const int t = thread_x();
  y[t] = load_vec<4>(x, Broken ? t : t / 4 * 4).v[0];
}

template <bool Broken>
void shared_out_of_bounds(In x, Out y) {
  auto s = shared_view<float>(0, 128);
  const int t = thread_x();
  s[Broken ? t + 1 : t] = x[t];
  syncthreads();
  y[t] = s[t];
}

template <bool Broken>
void shared_view_beyond_the_launch(In x, Out y) {
  auto s = shared_view<float>(0, Broken ? 1025 : 1024);
  s[thread_x()] = x[thread_x()];
  y[thread_x()] = s[thread_x()];
}

template <bool Broken>
void shared_misaligned(In x, Out y) {
  auto s = shared_view<float>(0, 1024);
  const int t = thread_x();
  store_vec(s, Broken ? 4 * t + 2 : 4 * t, load_vec<4>(x, 4 * t));
  y[t] = s[4 * t + 2];
}

template <bool Broken>
void uninitialised(In x, Out y) {
  auto s = shared_view<float>(0, 128);
  const int t = thread_x();
  if (!Broken || t % 32 != 7) s[t] = x[t];
  syncthreads();
  y[t] = s[t];
}

template <bool Broken>
void barrier_in_a_branch(In x, Out y) {
  if (!Broken || thread_x() < 64) syncthreads();
  y[thread_x()] = x[thread_x()];
}

template <bool Broken>
void two_barriers_that_meet(In x, Out y) {
  if (!Broken) {
    syncthreads();
  } else if (thread_x() < 64) {
    syncthreads();
  } else {
    syncthreads();
  }
  y[thread_x()] = x[thread_x()];
}

template <bool Broken>
void barrier_after_an_exit(In x, Out y) {
  y[thread_x()] = x[thread_x()];
  if (Broken && thread_x() == 5) return;
  syncthreads();
}

template <bool Broken>
void mask_without_the_caller(In x, Out y) {
  const uint32_t mask = Broken && lane() == 3 ? 0xffff0000u : kFullMask;
  y[thread_x()] = shfl_xor(x[thread_x()], 1, mask);
}

template <bool Broken>
void mask_names_absent_lanes(In x, Out y) {
  const int t = thread_x();
  y[t] = x[t];
  if (lane() < 16) y[t] = shfl_xor(x[t], 1, Broken ? kFullMask : 0xffffu);
}

template <bool Broken>
void mask_differs_between_lanes(In x, Out y) {
  const uint32_t low = 0xffffu, high = 0xffff0000u;
  const uint32_t mask = Broken ? (lane() < 8 ? kFullMask : low | high >> (lane() % 2)) : kFullMask;
  y[thread_x()] = shfl_xor(x[thread_x()], 1, mask);
}

template <bool Broken>
void shuffle_from_outside_the_mask(In x, Out y) {
  const uint32_t half_warp = lane() < 16 ? 0xffffu : 0xffff0000u;
  y[thread_x()] = shfl_xor(x[thread_x()], Broken ? 16 : 8, half_warp);
}

template <bool Broken>
void shuffle_against_a_barrier(In x, Out y) {
  const int t = thread_x();
  float value = x[t];
  if (Broken && lane() == 0) {
    syncthreads();
  } else {
    value = shfl_xor(value, 1);
  }
  y[t] = value;
}

template <bool Broken>
void ldmatrix_misaligned(In x, Out y) {
  auto s = shared_view<float>(0, 1024);
  const int t = thread_x();
  for (int i = t; i < 1024; i += 128) s[i] = x[i % 512];
  syncthreads();
  uint32_t r[4];
  ldmatrix_x4(r, s.template as<half>(), lane() * 8 + (Broken ? 4 : 0));
  y[t] = static_cast<float>(r[0] + r[3]);
}

template <bool Broken>
void ldmatrix_without_syncwarp(In x, Out y) {
  auto s = shared_view<float>(0, 1024).at(warp() * 128);
  store_vec(s, 4 * lane(), load_vec<4>(x, 4 * lane()));
  if (!Broken) syncwarp();
  uint32_t r[4];
  ldmatrix_x4(r, s.template as<half>(), lane() * 8);
  y[thread_x()] = static_cast<float>(r[0] + r[3]);
}

template <bool Broken>
void mma_by_a_part_of_the_warp(In x, Out y) {
  uint32_t a[4] = {}, b[2] = {};
  float d[4] = {};
  y[thread_x()] = x[thread_x()];
  if (!Broken || lane() < 30) mma_m16n8k16<half>(d, a, b);
  y[thread_x()] = d[0];
}

}  // namespace megalite::broken
