// The device abstraction: all that a kernel may ask of the machine. A kernel file includes this
// header and nothing else of CUDA, so the same source is compiled by nvcc or NVRTC
// (intrinsics_ptx.cuh: inline PTX, no checks, no cost) and, with MEGALITE_SIMT defined, by a host
// compiler (simt/device.h: emulated thread by thread, every access checked).
//
// The vocabulary, equal in both (namespace megalite); blocks are one-dimensional in threads:
//   MEGALITE_KERNEL(threads, blocks_per_sm) void name(params)
//   MEGALITE_DEVICE, MEGALITE_HOST_DEVICE before functions; before loops MEGALITE_UNROLL, or
//   MEGALITE_ROLLED where copies of a long body would only cost registers
//   host: launch(LaunchConfig{name, grid, block, shared_bytes, stream}, kernel<...>, params...)
//   thread_x() block_x() block_y() block_z() grid_x() grid_y() grid_z() block_dim_x() lane() warp()
//   syncthreads()   syncwarp(mask): orders memory, as shuffles and ldmatrix do not
//   shfl(v, source, mask) shfl_xor(v, lanes, mask) shfl_down(v, delta, mask): 4-byte values
//   ballot(p, mask) any(p, mask) all(p, mask); every mask is optional and means all lanes
//   Global<T>(pointer, extent), Shared<T> = shared_view<T>(byte_offset, extent), in elements:
//     view[i], view.load(i), view.store(i, value)
//     view.at(offset): from element `offset` on; view.as<U>(): the same bytes as another type
//     load_vec<N>(view, i) -> Vec<T, N>, store_vec(view, i, vec): 2, 4, 8 or 16 aligned bytes
//     A Global<const T> goes through the read-only path: no thread of the launch may write it.
//   ldmatrix_x4(registers[4], view, i), ldmatrix_x4_trans, ldmatrix_x2(registers[2], ...),
//     ldmatrix_x2_trans: lane 8m + r gives row r of matrix m; sm_75 and later
//   cp_async16(shared, i, global, j, predicate): 16 bytes, zeros where the predicate is false;
//     cp_async_commit(), cp_async_wait<groups left>(); below sm_80 the copy is synchronous
//   mma_m16n8k16<T>(d[4], a[4], b[2]): d += a * b, T = half or bfloat16, both along k; sm_80
//   mma_m8n8k4<A, B>(d[8], a[2], b[2]): four products of halves, one a quadpair; A, B see Layout
//   atomic_add(view, i, value) -> old: float, int32, uint32; atomic_max(view, i, value): int32
//   exp2_approx log2_approx rsqrt_approx reciprocal_approx; fmaxf, fminf, fmaf as usual
//   to_float(x) from_float<T>(x) pack2<T>(low, high) -> uint32 unpack2<T>(word) -> Vec<float, 2>
//   as_uint(float) as_float(uint32)
//   opaque(int or int64): itself, but what is computed from it stays inside a loop and takes no register across
//   refuse(format, integers...): the host gave what a kernel may not be given; printed, and the
//     launch fails, as by a device-side assertion
#pragma once

#ifdef __CUDACC_RTC__
typedef signed char int8_t;
typedef short int16_t;
typedef int int32_t;
typedef long long int64_t;
typedef unsigned char uint8_t;
typedef unsigned short uint16_t;
typedef unsigned int uint32_t;
typedef unsigned long long uint64_t;
#else
#include <cstdint>
#endif

namespace megalite {

inline constexpr uint32_t kFullMask = 0xffffffffu;
inline constexpr int kWarpSize = 32;

/// How the elements of one operand of mma_m8n8k4 lie in a lane: `row` along k for A, along n for B;
/// `col` the reverse.
enum class Layout { row, col };

struct Dim3 {
  uint32_t x = 1, y = 1, z = 1;
};

struct half {
  uint16_t bits;
};

struct bfloat16 {
  uint16_t bits;
};

template <class T, int N>
struct alignas(sizeof(T) * N) Vec {
  T v[N];
};

template <class T>
struct RemoveConst {
  using type = T;
};
template <class T>
struct RemoveConst<const T> {
  using type = T;
};
template <class T>
using remove_const = typename RemoveConst<T>::type;

}  // namespace megalite

#ifdef MEGALITE_SIMT
#include "../simt/device.h"
#else
#include "intrinsics_ptx.cuh"
#endif
