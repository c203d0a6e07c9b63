// PyTorch's tensors as the kernels see them.
#pragma once

#include <ATen/ATen.h>
#include <c10/core/DeviceGuard.h>
#ifndef MEGALITE_SIMT
#include <c10/cuda/CUDAStream.h>
#endif

#include "cuda/intrinsics.cuh"
#include "cuda/strides.cuh"

/// Opens the block that registers kernels as this backend's: of CUDA tensors, or of the emulator.
#ifdef MEGALITE_SIMT
#define MEGALITE_REGISTER(m) TORCH_LIBRARY_IMPL(megalite_simt, CPU, m)
#else
#define MEGALITE_REGISTER(m) TORCH_LIBRARY_IMPL(megalite, CUDA, m)
#endif

namespace megalite {

#ifdef MEGALITE_SIMT
inline constexpr at::DeviceType kDevice = at::kCPU;
inline Stream current_stream() { return nullptr; }
#else
inline constexpr at::DeviceType kDevice = at::kCUDA;
inline Stream current_stream() { return c10::cuda::getCurrentCUDAStream().stream(); }
#endif

/// Checks that a tensor is on this backend's kind of device, and makes its device the current one.
class OnDevice {
 public:
  OnDevice(const char* op, const char* name, const at::Tensor& x)
      : guard_(checked(op, name, x).device()) {}

 private:
  static const at::Tensor& checked(const char* op, const char* name, const at::Tensor& x) {
    TORCH_CHECK(x.device().type() == kDevice, op, " ", name, ": must be on ",
                c10::DeviceTypeName(kDevice, true), ", came ", x.device());
    return x;
  }
  c10::DeviceGuard guard_;
};

/// Streaming multiprocessors of the current device; the emulator's are few, so that a block has
/// more than one piece of work.
inline int num_processors() {
#ifdef MEGALITE_SIMT
  return 2;
#else
  int device = 0, count = 0;
  require_success(cudaGetDevice(&device), "num_processors");
  require_success(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device),
                  "num_processors");
  return count;
#endif
}

/// Call work with a value of the kernels' element type: half, bfloat16 or float.
template <class Work>
void with_type(at::ScalarType type, const Work& work) {
  if (type == at::kHalf) {
    work(half{});
  } else if (type == at::kBFloat16) {
    work(bfloat16{});
  } else {
    work(float{});
  }
}

/// The memory of a tensor, from its first to its last element whatever its strides.
template <class T>
Global<T> view(const at::Tensor& x) {
  int64_t extent = x.numel() == 0 ? 0 : 1;
  for (int64_t dim = 0; dim < x.dim() && extent > 0; ++dim)
    extent += (x.size(dim) - 1) * x.stride(dim);
  return Global<T>(static_cast<T*>(x.data_ptr()), extent);
}
template <class T>
Global<const T> read(const at::Tensor& x) {
  const Global<T> written = view<T>(x);
#ifdef MEGALITE_SIMT
  return Global<const T>(written.data, written.extent);
#else
  return Global<const T>(written.data, 0);
#endif
}

/// Strides of [B, S, N, H] without the last, which is 1.
inline Strides strides_of(const at::Tensor& x) { return {x.stride(0), x.stride(1), x.stride(2)}; }

/// Elements of `x` past a multiple of 16 bytes.
inline int misalignment(const at::Tensor& x) {
  const auto address = reinterpret_cast<uintptr_t>(x.data_ptr());
  return static_cast<int>(address % 16 / x.element_size());
}

/// Whether every row of the last dimension starts at a multiple of 16 bytes.
inline bool has_aligned_rows(const at::Tensor& x) {
  const int64_t vector = 16 / x.element_size();
  for (int64_t dim = 0; dim + 1 < x.dim(); ++dim)
    if (x.size(dim) > 1 && x.stride(dim) % vector != 0) return false;
  return misalignment(x) == 0;
}

}  // namespace megalite
