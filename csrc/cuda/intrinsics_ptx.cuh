// The device abstraction on a GPU; included by intrinsics.cuh, which documents it. Views are bare
// pointers.
#pragma once

#ifndef __CUDACC_RTC__
#include <cuda_runtime.h>

#include <cstdio>
#include <stdexcept>
#include <string>
#endif

#define MEGALITE_DEVICE __device__ __forceinline__
#define MEGALITE_KERNEL(threads, blocks_per_sm) __global__ __launch_bounds__(threads, blocks_per_sm)
#ifdef __CUDA_ARCH__
#define MEGALITE_IS_FOR(low, high) (__CUDA_ARCH__ >= (low) * 10 && __CUDA_ARCH__ < (high) * 10)
#else
#define MEGALITE_IS_FOR(low, high) true
#endif
#define MEGALITE_UNROLL _Pragma("unroll")
#define MEGALITE_ROLLED _Pragma("unroll 1")

namespace megalite {

MEGALITE_DEVICE int thread_x() { return static_cast<int>(threadIdx.x); }
MEGALITE_DEVICE int block_x() { return static_cast<int>(blockIdx.x); }
MEGALITE_DEVICE int block_y() { return static_cast<int>(blockIdx.y); }
MEGALITE_DEVICE int block_z() { return static_cast<int>(blockIdx.z); }
MEGALITE_DEVICE int grid_x() { return static_cast<int>(gridDim.x); }
MEGALITE_DEVICE int grid_y() { return static_cast<int>(gridDim.y); }
MEGALITE_DEVICE int grid_z() { return static_cast<int>(gridDim.z); }
MEGALITE_DEVICE int block_dim_x() { return static_cast<int>(blockDim.x); }
MEGALITE_DEVICE int lane() { return thread_x() % kWarpSize; }
MEGALITE_DEVICE int warp() { return thread_x() / kWarpSize; }

MEGALITE_DEVICE void syncthreads() { __syncthreads(); }
MEGALITE_DEVICE void syncwarp(uint32_t mask = kFullMask) { __syncwarp(mask); }

template <class T>
MEGALITE_DEVICE T shfl(T value, int source, uint32_t mask = kFullMask) {
  return __shfl_sync(mask, value, source);
}
template <class T>
MEGALITE_DEVICE T shfl_xor(T value, int lanes, uint32_t mask = kFullMask) {
  return __shfl_xor_sync(mask, value, lanes);
}
template <class T>
MEGALITE_DEVICE T shfl_down(T value, int delta, uint32_t mask = kFullMask) {
  return __shfl_down_sync(mask, value, delta);
}
MEGALITE_DEVICE uint32_t ballot(bool p, uint32_t mask = kFullMask) {
  return __ballot_sync(mask, p);
}
MEGALITE_DEVICE bool any(bool p, uint32_t mask = kFullMask) { return __any_sync(mask, p) != 0; }
MEGALITE_DEVICE bool all(bool p, uint32_t mask = kFullMask) { return __all_sync(mask, p) != 0; }

MEGALITE_DEVICE int opaque(int x) {
  asm volatile("" : "+r"(x));
  return x;
}
MEGALITE_DEVICE int64_t opaque(int64_t x) {
  asm volatile("" : "+l"(x));
  return x;
}
MEGALITE_DEVICE float as_float(uint32_t x) { return __uint_as_float(x); }
MEGALITE_DEVICE uint32_t as_uint(float x) { return __float_as_uint(x); }

template <class... Values>
__device__ void refuse(const char* format, Values... values) {
  printf(format, values...);
  printf("\n");
  __trap();
}

// ------------------------------------------------------------------------------------------------
// memory

template <class T>
struct Global {
  T* data;
  MEGALITE_HOST_DEVICE Global() : data(nullptr) {}
  MEGALITE_HOST_DEVICE Global(T* pointer, int64_t) : data(pointer) {}
  MEGALITE_DEVICE T& operator[](int64_t i) const { return data[i]; }
  MEGALITE_DEVICE remove_const<T> load(int64_t i) const { return data[i]; }
  MEGALITE_DEVICE void store(int64_t i, T value) const { data[i] = value; }
  MEGALITE_DEVICE Global at(int64_t offset) const { return Global(data + offset, 0); }
  MEGALITE_HOST_DEVICE explicit operator bool() const { return data != nullptr; }
  template <class U>
  MEGALITE_DEVICE Global<U> as() const {
    return Global<U>(reinterpret_cast<U*>(data), 0);
  }
};

template <class T>
struct Shared {
  T* data;
  MEGALITE_DEVICE T& operator[](int i) const { return data[i]; }
  MEGALITE_DEVICE T load(int i) const { return data[i]; }
  MEGALITE_DEVICE void store(int i, T value) const { data[i] = value; }
  MEGALITE_DEVICE Shared at(int offset) const { return Shared{data + offset}; }
  template <class U>
  MEGALITE_DEVICE Shared<U> as() const {
    return Shared<U>{reinterpret_cast<U*>(data)};
  }
  MEGALITE_DEVICE uint32_t address(int i) const {
    return static_cast<uint32_t>(__cvta_generic_to_shared(data + i));
  }
};

template <class T>
MEGALITE_DEVICE Shared<T> shared_view(int byte_offset, int /*extent*/) {
  extern __shared__ __align__(128) unsigned char megalite_dynamic_shared[];
  return Shared<T>{reinterpret_cast<T*>(megalite_dynamic_shared + byte_offset)};
}

/// The built-in type that is loaded or stored in one access of so many bytes.
template <int Bytes>
struct Access;
template <>
struct Access<2> {
  using type = unsigned short;
};
template <>
struct Access<4> {
  using type = unsigned int;
};
template <>
struct Access<8> {
  using type = uint2;
};
template <>
struct Access<16> {
  using type = uint4;
};

template <class Out, class In>
MEGALITE_DEVICE Out bit_copy(const In& in) {
  static_assert(sizeof(Out) == sizeof(In), "equal sizes");
  Out out;
  memcpy(&out, &in, sizeof(Out));
  return out;
}

template <class T>
struct IsConst {
  static constexpr bool value = false;
};
template <class T>
struct IsConst<const T> {
  static constexpr bool value = true;
};

template <int N, class T>
MEGALITE_DEVICE Vec<remove_const<T>, N> load_vec(Global<T> view, int64_t i) {
  using A = typename Access<N * sizeof(T)>::type;
  const A* p = reinterpret_cast<const A*>(view.data + i);
  if constexpr (IsConst<T>::value) {
    return bit_copy<Vec<remove_const<T>, N>>(__ldg(p));
  } else {
    const A value = *p;  // one access: memcpy from memory may be compiled to single bytes
    return bit_copy<Vec<remove_const<T>, N>>(value);
  }
}
template <int N, class T>
MEGALITE_DEVICE Vec<T, N> load_vec(Shared<T> view, int i) {
  using A = typename Access<N * sizeof(T)>::type;
  const A value = *reinterpret_cast<const A*>(view.data + i);
  return bit_copy<Vec<T, N>>(value);
}
template <int N, class T>
MEGALITE_DEVICE void store_vec(Global<T> view, int64_t i, const Vec<T, N>& value) {
  using A = typename Access<N * sizeof(T)>::type;
  *reinterpret_cast<A*>(view.data + i) = bit_copy<A>(value);
}
template <int N, class T>
MEGALITE_DEVICE void store_vec(Shared<T> view, int i, const Vec<T, N>& value) {
  using A = typename Access<N * sizeof(T)>::type;
  *reinterpret_cast<A*>(view.data + i) = bit_copy<A>(value);
}

template <class T>
MEGALITE_DEVICE T atomic_add(Global<T> view, int64_t i, T value) {
  return atomicAdd(view.data + i, value);
}
template <class T>
MEGALITE_DEVICE T atomic_add(Shared<T> view, int i, T value) {
  return atomicAdd(view.data + i, value);
}
MEGALITE_DEVICE int64_t atomic_add(Global<int64_t> view, int64_t i, int64_t value) {
  auto* sum = reinterpret_cast<unsigned long long*>(view.data + i);
  return static_cast<int64_t>(atomicAdd(sum, static_cast<unsigned long long>(value)));
}
MEGALITE_DEVICE void store_release(Global<int32_t> view, int64_t i, int32_t value) {
  asm volatile("fence.acq_rel.gpu;\n\tst.relaxed.gpu.global.s32 [%0], %1;"
               :
               : "l"(view.data + i), "r"(value)
               : "memory");
}
MEGALITE_DEVICE void wait_until(Global<int32_t> view, int64_t i, int32_t value) {
  int32_t came;
  do {
    asm volatile("ld.acquire.gpu.global.s32 %0, [%1];"
                 : "=r"(came)
                 : "l"(view.data + i)
                 : "memory");
  } while (came != value);
}
MEGALITE_DEVICE int32_t atomic_max(Global<int32_t> view, int64_t i, int32_t value) {
  return atomicMax(view.data + i, value);
}
MEGALITE_DEVICE int32_t atomic_max(Shared<int32_t> view, int i, int32_t value) {
  return atomicMax(view.data + i, value);
}

// ------------------------------------------------------------------------------------------------
// ldmatrix, cp.async

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 750
#define MEGALITE_LDMATRIX(text, ...) asm volatile("trap;")
#else
#define MEGALITE_LDMATRIX(text, ...) asm volatile(text : __VA_ARGS__ : "memory")
#endif

template <class T>
MEGALITE_DEVICE void ldmatrix_x4(uint32_t (&r)[4], Shared<T> view, int i) {
  MEGALITE_LDMATRIX("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];", "=r"(r[0]),
                    "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(view.address(i)));
}
template <class T>
MEGALITE_DEVICE void ldmatrix_x4_trans(uint32_t (&r)[4], Shared<T> view, int i) {
  MEGALITE_LDMATRIX("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];",
                    "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(view.address(i)));
}
template <class T>
MEGALITE_DEVICE void ldmatrix_x2(uint32_t (&r)[2], Shared<T> view, int i) {
  MEGALITE_LDMATRIX("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];", "=r"(r[0]),
                    "=r"(r[1]) : "r"(view.address(i)));
}
template <class T>
MEGALITE_DEVICE void ldmatrix_x2_trans(uint32_t (&r)[2], Shared<T> view, int i) {
  MEGALITE_LDMATRIX("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];", "=r"(r[0]),
                    "=r"(r[1]) : "r"(view.address(i)));
}
#undef MEGALITE_LDMATRIX

template <class T, class U>
MEGALITE_DEVICE void cp_async16(Shared<T> shared, int i, Global<U> global, int64_t j,
                                bool predicate) {
  static_assert(sizeof(T) == sizeof(U), "a copy keeps the element type");
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
               :
               : "r"(shared.address(i)), "l"(global.data + j), "r"(predicate ? 16 : 0)
               : "memory");
#else
  uint4 value = make_uint4(0, 0, 0, 0);
  if (predicate) value = *reinterpret_cast<const uint4*>(global.data + j);
  *reinterpret_cast<uint4*>(shared.data + i) = value;
#endif
}

MEGALITE_DEVICE void cp_async_commit() {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

/// Wait until at most N of this thread's most recent groups are still in flight.
template <int N>
MEGALITE_DEVICE void cp_async_wait() {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
#endif
}

// ------------------------------------------------------------------------------------------------
// tensor cores

template <class T>
struct IsBfloat16 {
  static constexpr bool value = false;
};
template <>
struct IsBfloat16<bfloat16> {
  static constexpr bool value = true;
};

template <class T>
MEGALITE_DEVICE void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
  asm volatile("trap;");
#else
  if constexpr (IsBfloat16<T>::value) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
        "{%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  } else {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }
#endif
}

#define MEGALITE_MMA884(layouts)                                                                   \
  asm volatile(                                                                                    \
      "mma.sync.aligned.m8n8k4." layouts                                                           \
      ".f32.f16.f16.f32 {%0,%1,%2,%3,%4,%5,%6,%7}, {%8,%9}, {%10,%11}, {%0,%1,%2,%3,%4,%5,%6,%7};" \
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]),        \
        "+f"(d[7])                                                                                 \
      : "r"(a[0]), "r"(a[1]), "r"(b[0]), "r"(b[1]))

template <Layout A = Layout::row, Layout B = Layout::col>
MEGALITE_DEVICE void mma_m8n8k4(float (&d)[8], const uint32_t (&a)[2], const uint32_t (&b)[2]) {
  if constexpr (A == Layout::row && B == Layout::col) {
    MEGALITE_MMA884("row.col");
  } else if constexpr (A == Layout::row) {
    MEGALITE_MMA884("row.row");
  } else if constexpr (B == Layout::col) {
    MEGALITE_MMA884("col.col");
  } else {
    MEGALITE_MMA884("col.row");
  }
}
#undef MEGALITE_MMA884

// ------------------------------------------------------------------------------------------------
// arithmetic

MEGALITE_DEVICE float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
MEGALITE_DEVICE float log2_approx(float x) {
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
MEGALITE_DEVICE float rsqrt_approx(float x) {
  float y;
  asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
MEGALITE_DEVICE float reciprocal_approx(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

MEGALITE_DEVICE int32_t round_to_int(float x) { return __float2int_rn(x); }
MEGALITE_DEVICE int64_t round_to_int64(float x) {  // by CUDA, NaN becomes the least of int64
  return x != x ? 0 : __float2ll_rn(x);
}

MEGALITE_DEVICE float to_float(float x) { return x; }
MEGALITE_DEVICE float to_float(half x) {
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
  return y;
}
MEGALITE_DEVICE float to_float(bfloat16 x) { return as_float(static_cast<uint32_t>(x.bits) << 16); }

template <class T>
MEGALITE_DEVICE T from_float(float x);
template <>
MEGALITE_DEVICE float from_float<float>(float x) {
  return x;
}
template <>
MEGALITE_DEVICE half from_float<half>(float x) {
  half y;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
  return y;
}
template <>
MEGALITE_DEVICE bfloat16 from_float<bfloat16>(float x) {
  bfloat16 y;
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
#else
  const uint32_t u = as_uint(x);
  y.bits = x != x ? 0x7fff : static_cast<uint16_t>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
#endif
  return y;
}

/// Round two floats to T and pack them into 32 bits, `low` in bits 0-15.
template <class T>
MEGALITE_DEVICE uint32_t pack2(float low, float high) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
  uint32_t y;
  if constexpr (IsBfloat16<T>::value) {
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
  } else {
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
  }
  return y;
#else
  return from_float<T>(low).bits | static_cast<uint32_t>(from_float<T>(high).bits) << 16;
#endif
}
template <class T>
MEGALITE_DEVICE Vec<float, 2> unpack2(uint32_t word) {
  return {{to_float(T{static_cast<uint16_t>(word & 0xffffu)}),
           to_float(T{static_cast<uint16_t>(word >> 16)})}};
}

// ------------------------------------------------------------------------------------------------
// launch

#ifdef __CUDACC_RTC__
using Stream = void*;
#else
using Stream = cudaStream_t;
#endif

struct LaunchConfig {
  const char* name;
  Dim3 grid, block;
  int shared_bytes = 0;
  Stream stream = nullptr;
};

#ifdef __CUDACC_RTC__
/// NVRTC compiles no host code: a launch only instantiates the kernel.
template <class... Params, class... Args>
__device__ void launch(const LaunchConfig&, void (*kernel)(Params...), Args...) {
  if (kernel == nullptr) __trap();
}
#else
inline void require_success(cudaError_t status, const char* kernel) {
  if (status == cudaSuccess) return;
  throw std::runtime_error(std::string("cuda: launch of ") + kernel + ": " +
                           cudaGetErrorString(status));
}

template <class... Params, class... Args>
void launch(const LaunchConfig& config, void (*kernel)(Params...), Args... args) {
  if (config.shared_bytes > 48 * 1024) {
    require_success(
        cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                             cudaFuncAttributeMaxDynamicSharedMemorySize, config.shared_bytes),
        config.name);
  }
  const dim3 grid(config.grid.x, config.grid.y, config.grid.z);
  const dim3 block(config.block.x, config.block.y, config.block.z);
  kernel<<<grid, block, config.shared_bytes, config.stream>>>(args...);
  require_success(cudaGetLastError(), config.name);
}
#endif

}  // namespace megalite
