// PyTorch's tensors as the CPU kernels read and write them, and memory for them.
#pragma once

#include <ATen/ATen.h>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "cpu/kernels/kernels.h"

namespace megalite::cpu {

/// Ask for huge pages for memory that is about to be written for the first time: page faults of
/// small pages cost more than the arithmetic of a pass over a large tensor.
inline void prefer_huge_pages(const at::Tensor& x) {
#if defined(__linux__)
  constexpr uintptr_t kPage = 4096;
  const uintptr_t first = (reinterpret_cast<uintptr_t>(x.data_ptr()) + kPage - 1) / kPage * kPage;
  const uintptr_t last = (reinterpret_cast<uintptr_t>(x.data_ptr()) + x.nbytes()) / kPage * kPage;
  if (last > first + (uintptr_t{2} << 20))
    madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
}

/// Uninitialised fp32 memory.
inline at::Tensor new_floats(at::IntArrayRef sizes) {
  at::Tensor x = at::empty(sizes, at::kFloat);
  prefer_huge_pages(x);
  return x;
}

/// x as fp32 with a contiguous last dimension; a copy only if it must be.
inline at::Tensor widen(const at::Tensor& x) {
  const at::Tensor wide = x.to(at::kFloat);
  return wide.stride(-1) == 1 ? wide : wide.contiguous();
}

inline Strided strided(const at::Tensor& x) {
  return {x.data_ptr<float>(), x.stride(0), x.stride(1), x.stride(2)};
}

/// Dropout of x [B, S, D] to out, both contiguous fp32; sample_ids is contiguous, int64 [B]. All
/// must outlive it.
inline Dropout dropout_of(double p, int64_t seed, const at::Tensor& sample_ids, const at::Tensor& x,
                          const at::Tensor& out, int64_t position_offset, int64_t feature_offset) {
  Dropout d = {};
  d.x = x.data_ptr<float>(), d.out = out.data_ptr<float>();
  d.sample_ids = sample_ids.data_ptr<int64_t>();
  d.rows_per_batch = x.size(1), d.features = x.size(2);
  d.position_offset = position_offset, d.feature_offset = feature_offset;
  d.seed = static_cast<uint64_t>(seed), d.p = p;
  return d;
}

}  // namespace megalite::cpu
