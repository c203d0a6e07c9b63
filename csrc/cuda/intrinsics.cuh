// The device abstraction: everything a kernel may use of CUDA. A kernel file includes this header
// and no CUDA header, so the same source is compiled by nvcc or NVRTC (intrinsics_ptx.cuh: inline
// PTX, no checks, no overhead) and, with MEGALITE_SIMT defined, by a host compiler (simt/device.h:
// emulated thread by thread, every access checked).
//
// The interface, the same in both (namespace megalite); blocks are one-dimensional in threads:
//   MEGALITE_KERNEL(threads, blocks_per_sm) void name(params)
//   MEGALITE_DEVICE, MEGALITE_HOST_DEVICE before functions; before loops MEGALITE_UNROLL, or
//   MEGALITE_ROLLED where unrolling a long body would only cost registers
//   if constexpr (MEGALITE_IS_FOR(low, high)): around the body of a kernel that only GPUs of a compute
//     capability (times ten) from low to below high run; for others it is compiled empty
//   host: launch(LaunchConfig{name, grid, block, shared_bytes, stream}, kernel<...>, params...)
//   thread_x() block_x() block_y() block_z() grid_x() grid_y() grid_z() block_dim_x() lane() warp()
//   syncthreads()   syncwarp(mask): orders memory accesses; shuffles and ldmatrix do not
//   shfl(v, source, mask) shfl_xor(v, lanes, mask) shfl_down(v, delta, mask): 4-byte values
//   ballot(p, mask) any(p, mask) all(p, mask); every mask is optional and means all lanes
//   Global<T>(pointer, extent), Shared<T> = shared_view<T>(byte_offset, extent), in elements:
//     view[i], view.load(i), view.store(i, value)
//     view.at(offset): the view from element `offset` on; view.as<U>(): the same bytes as a U
//     load_vec<N>(view, i) -> Vec<T, N>, store_vec(view, i, vec): 2, 4, 8 or 16 aligned bytes
//     A Global<const T> may be read through the read-only cache: no thread of the launch writes it.
//   ldmatrix_x4(registers[4], view, i), ldmatrix_x4_trans, ldmatrix_x2(registers[2], ...),
//     ldmatrix_x2_trans: lane 8m + r passes the address of row r of matrix m; sm_75 and later
//   cp_async16(shared, i, global, j, predicate): 16 bytes, zeros where the predicate is false;
//     cp_async_commit(), cp_async_wait<groups left>(); below sm_80 the copy is synchronous
//   mma_m16n8k16<T>(d[4], a[4], b[2]): d += a * b, T = half or bfloat16, A row-major, B
//     column-major; sm_80 and later
//   mma_m8n8k4<A, B>(d[8], a[2], b[2]): four products of halves, one per quadpair; A, B: see Layout
//   atomic_add(view, i, value) -> old: float, int32, uint32, and int64 in global memory;
//     atomic_max(view, i, value): int32
//   store_release(view, i, value) and wait_until(view, i, value): int32 in global memory; what the
//     first one's thread wrote, or saw written, is seen after the second. Only for a value that a
//     block that runs already will write: blocks start in any order, and some after others' end
//   exp2_approx log2_approx rsqrt_approx reciprocal_approx; fmaxf, fminf, fmaf as usual
//   round_to_int(float) -> int32, round_to_int64(float): to nearest even; NaN is 0, too large is the
//     largest
//   to_float(x) from_float<T>(x) pack2<T>(low, high) -> uint32 unpack2<T>(word) -> Vec<float, 2>
//   as_uint(float) as_float(uint32)
//   opaque(int or int64): the same value, but one that the compiler can't trace: what is computed
//     from it is not hoisted out of a loop, where it would hold a register
//   refuse(format, integers...): reject invalid input: prints the message and traps, as a
//     device-side assertion does
#pragma once

#include "host_device.h"

namespace megalite {

inline constexpr uint32_t kFullMask = 0xffffffffu;
inline constexpr int kWarpSize = 32;

/// The layout of an operand of mma_m8n8k4. A lane's elements run along k for a `row` A or a `col`
/// B, along m for a `col` A, along n for a `row` B.
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
#include "simt/device.h"
#else
#include "cuda/intrinsics_ptx.cuh"
#endif
