// The device abstraction on the CPU; included by cuda/intrinsics.cuh, which documents it. Every
// access is checked.
#pragma once

#include <cmath>
#include <cstring>
#include <tuple>
#include <type_traits>

#include "simt/machine.h"
#include "simt/numbers.h"

#define MEGALITE_DEVICE inline
#define MEGALITE_KERNEL(threads, blocks_per_sm) inline
#define MEGALITE_IS_FOR(low, high) true
#define MEGALITE_UNROLL
#define MEGALITE_ROLLED

namespace megalite {

using simt::Site;

inline int thread_x() { return simt::machine.thread; }
inline int block_x() { return simt::machine.block[0]; }
inline int block_y() { return simt::machine.block[1]; }
inline int block_z() { return simt::machine.block[2]; }
inline int grid_x() { return simt::machine.grid[0]; }
inline int grid_y() { return simt::machine.grid[1]; }
inline int grid_z() { return simt::machine.grid[2]; }
inline int block_dim_x() { return simt::machine.num_threads; }
inline int lane() { return simt::machine.lane; }
inline int warp() { return simt::machine.thread / kWarpSize; }

inline int opaque(int x) { return x; }
inline int64_t opaque(int64_t x) { return x; }
inline float as_float(uint32_t x) { return simt::bits_to_float(x); }
inline uint32_t as_uint(float x) { return simt::float_to_bits(x); }

// ------------------------------------------------------------------------------------------------
// warps and blocks

inline void syncthreads(Site site = Site::here()) { simt::machine.barrier(site); }
inline void syncwarp(uint32_t mask = kFullMask, Site site = Site::here()) {
  simt::WarpRequest request{simt::WarpOp::sync, mask, site};
  simt::machine.warp_op(request);
}

template <class T>
T shuffle(simt::WarpOp op, T value, int argument, uint32_t mask, Site site) {
  static_assert(sizeof(T) == 4, "shuffles are of 4-byte values");
  simt::WarpRequest request{op, mask, site};
  std::memcpy(&request.value, &value, 4);
  request.argument = argument;
  simt::machine.warp_op(request);
  T result;
  std::memcpy(&result, &request.result, 4);
  return result;
}
template <class T>
T shfl(T value, int source, uint32_t mask = kFullMask, Site site = Site::here()) {
  return shuffle(simt::WarpOp::shuffle, value, source, mask, site);
}
template <class T>
T shfl_xor(T value, int lanes, uint32_t mask = kFullMask, Site site = Site::here()) {
  return shuffle(simt::WarpOp::shuffle_xor, value, lanes, mask, site);
}
template <class T>
T shfl_down(T value, int delta, uint32_t mask = kFullMask, Site site = Site::here()) {
  return shuffle(simt::WarpOp::shuffle_down, value, delta, mask, site);
}

inline uint32_t vote(simt::WarpOp op, bool p, uint32_t mask, Site site) {
  simt::WarpRequest request{op, mask, site};
  request.value = p;
  simt::machine.warp_op(request);
  return request.result;
}
inline uint32_t ballot(bool p, uint32_t mask = kFullMask, Site site = Site::here()) {
  return vote(simt::WarpOp::ballot, p, mask, site);
}
inline bool any(bool p, uint32_t mask = kFullMask, Site site = Site::here()) {
  return vote(simt::WarpOp::any, p, mask, site) != 0;
}
inline bool all(bool p, uint32_t mask = kFullMask, Site site = Site::here()) {
  return vote(simt::WarpOp::all, p, mask, site) != 0;
}

/// A format string with the place in the source where it stands.
struct Format {
  const char* text;
  Site site;
  Format(const char* format, Site here = Site::here()) : text(format), site(here) {}
};
template <class... Values>
[[noreturn]] void refuse(Format format, Values... values) {
  simt::fail(format.site, format.text, values...);
}

// ------------------------------------------------------------------------------------------------
// memory

/// An index with the place in the source where it is used, since operator[] takes no second
/// argument.
struct Index {
  int64_t value;
  Site site;
  template <class I, class = std::enable_if_t<std::is_integral_v<I>>>
  Index(I i, Site here = Site::here()) : value(static_cast<int64_t>(i)), site(here) {}
};

template <class T>
struct Global {
  T* data = nullptr;   // element `origin` of the tensor
  int64_t extent = 0;  // elements from there on
  int64_t origin = 0;

  Global() = default;
  Global(T* pointer, int64_t elements, int64_t first = 0)
      : data(pointer), extent(elements), origin(first) {}
  T& operator[](Index i) const {
    check(i.value, 1, i.site);
    count(sizeof(T), !std::is_const_v<T>);
    return data[i.value];
  }
  remove_const<T> load(int64_t i, Site site = Site::here()) const {
    check(i, 1, site);
    count(sizeof(T), false);
    return data[i];
  }
  void store(int64_t i, T value, Site site = Site::here()) const {
    check(i, 1, site);
    count(sizeof(T), true);
    data[i] = value;
  }
  Global at(int64_t offset) const {
    return Global(data + offset, extent - offset, origin + offset);
  }
  explicit operator bool() const { return data != nullptr; }
  template <class U>
  Global<U> as() const {
    const int64_t from = sizeof(T), to = sizeof(U);
    return Global<U>(reinterpret_cast<U*>(data), extent * from / to, origin * from / to);
  }
  void check(int64_t i, int count, Site site) const {
    if (i >= 0 && i + count <= extent) {
      if (count == 1) return;
      const size_t bytes = sizeof(T) * static_cast<size_t>(count);
      if (reinterpret_cast<uintptr_t>(data + i) % bytes == 0) return;
      simt::fail(site, "misaligned global access: %zu bytes at element %ld (address %p)", bytes,
                 static_cast<long>(origin + i), static_cast<const void*>(data + i));
    }
    simt::fail(site, "global access out of bounds: %d element(s) at %ld of %ld (address %p)", count,
               static_cast<long>(origin + i), static_cast<long>(origin + extent),
               static_cast<const void*>(data + i));
  }
  static void count(uint64_t bytes, bool write) {
    (write ? simt::machine.counters->global_write_bytes
           : simt::machine.counters->global_read_bytes) += bytes;
  }
};

template <class T>
struct Shared {
  static_assert(sizeof(T) >= 2, "shared memory is tracked by pairs of bytes");
  int offset = 0;  // bytes from the block's first
  int extent = 0;  // elements

  /// What view[i] returns, as reads and writes are checked differently.
  struct Reference {
    Shared view;
    Index i;
    operator T() const { return view.load(i.value, i.site); }
    const Reference& operator=(T value) const {
      view.store(i.value, value, i.site);
      return *this;
    }
    const Reference& operator=(const Reference& other) const {
      return *this = static_cast<T>(other);
    }
    const Reference& operator+=(T value) const { return *this = static_cast<T>(*this) + value; }
  };
  Reference operator[](Index i) const { return {*this, i}; }
  T load(int64_t i, Site site = Site::here()) const {
    T value;
    read(&value, i, 1, site);
    return value;
  }
  void store(int64_t i, T value, Site site = Site::here()) const { write(&value, i, 1, site); }
  Shared at(int first) const {
    return Shared{offset + first * static_cast<int>(sizeof(T)), extent - first};
  }
  template <class U>
  Shared<U> as() const {
    return Shared<U>{offset, static_cast<int>(extent * sizeof(T) / sizeof(U))};
  }
  /// The byte offset of `count` elements from i on, checked.
  uint32_t address(int64_t i, int count, Site site) const {
    const int64_t byte = offset + i * static_cast<int64_t>(sizeof(T));
    if (i < 0 || i + count > extent || byte < 0) {
      simt::fail(site,
                 "shared access out of bounds: %d element(s) at %ld of a view of %d (byte %ld)",
                 count, static_cast<long>(i), extent, static_cast<long>(byte));
    }
    if (byte % static_cast<int64_t>(sizeof(T) * count) != 0) {
      simt::fail(site, "misaligned shared access: %zu bytes at byte %ld", sizeof(T) * count,
                 static_cast<long>(byte));
    }
    return static_cast<uint32_t>(byte);
  }
  void read(void* out, int64_t i, int count, Site site) const {
    const uint32_t byte = address(i, count, site);
    simt::machine.shared_read(site, byte, static_cast<uint32_t>(sizeof(T) * count));
    std::memcpy(out, simt::machine.shared.data(byte), sizeof(T) * count);
  }
  void write(const void* in, int64_t i, int count, Site site) const {
    const uint32_t byte = address(i, count, site);
    simt::machine.shared_write(site, byte, static_cast<uint32_t>(sizeof(T) * count));
    std::memcpy(simt::machine.shared.data(byte), in, sizeof(T) * count);
  }
};

template <class T>
Shared<T> shared_view(int byte_offset, int extent, Site site = Site::here()) {
  const int64_t end = byte_offset + static_cast<int64_t>(sizeof(T)) * extent;
  if (byte_offset < 0 || extent < 0 || end > simt::machine.shared.bytes()) {
    simt::fail(site, "shared view of bytes [%d, %ld) of the %d that the launch has", byte_offset,
               static_cast<long>(end), simt::machine.shared.bytes());
  }
  return Shared<T>{byte_offset, extent};
}

template <int N, class T>
Vec<remove_const<T>, N> load_vec(Global<T> view, int64_t i, Site site = Site::here()) {
  static_assert(N * sizeof(T) <= 16, "an access has at most 16 bytes");
  view.check(i, N, site);
  view.count(N * sizeof(T), false);
  Vec<remove_const<T>, N> value;
  std::memcpy(&value, view.data + i, sizeof value);
  return value;
}
template <int N, class T>
Vec<T, N> load_vec(Shared<T> view, int64_t i, Site site = Site::here()) {
  static_assert(N * sizeof(T) <= 16, "an access has at most 16 bytes");
  Vec<T, N> value;
  view.read(&value, i, N, site);
  return value;
}
template <int N, class T>
void store_vec(Global<T> view, int64_t i, const Vec<T, N>& value, Site site = Site::here()) {
  static_assert(N * sizeof(T) <= 16, "an access has at most 16 bytes");
  view.check(i, N, site);
  view.count(N * sizeof(T), true);
  std::memcpy(view.data + i, &value, sizeof value);
}
template <int N, class T>
void store_vec(Shared<T> view, int64_t i, const Vec<T, N>& value, Site site = Site::here()) {
  static_assert(N * sizeof(T) <= 16, "an access has at most 16 bytes");
  view.write(&value, i, N, site);
}

template <class T>
T atomic_add(Global<T> view, int64_t i, T value, Site site = Site::here()) {
  const T old = view.load(i, site);
  view.store(i, old + value, site);
  return old;
}
inline void store_release(Global<int32_t> view, int64_t i, int32_t value,
                          Site site = Site::here()) {
  view.store(i, value, site);
}
/// Blocks run one after another: what a block waits for must have happened.
inline void wait_until(Global<int32_t> view, int64_t i, int32_t value, Site site = Site::here()) {
  const int32_t came = view.load(i, site);
  if (came != value)
    simt::fail(site,
               "waits for %d in global memory at %ld, which has %d, written by a block that "
               "may not have started",
               value, static_cast<long>(view.origin + i), came);
}
inline int32_t atomic_max(Global<int32_t> view, int64_t i, int32_t value,
                          Site site = Site::here()) {
  const int32_t old = view.load(i, site);
  if (value > old) view.store(i, value, site);
  return old;
}
template <class T, class F>
T atomic_update(Shared<T> view, int64_t i, F combine, Site site) {
  const uint32_t byte = view.address(i, 1, site);
  simt::machine.shared.atomic(site, simt::machine.tag, byte, sizeof(T));
  T old;
  std::memcpy(&old, simt::machine.shared.data(byte), sizeof(T));
  const T updated = combine(old);
  std::memcpy(simt::machine.shared.data(byte), &updated, sizeof(T));
  return old;
}
template <class T>
T atomic_add(Shared<T> view, int64_t i, T value, Site site = Site::here()) {
  return atomic_update(view, i, [=](T old) { return old + value; }, site);
}
inline int32_t atomic_max(Shared<int32_t> view, int64_t i, int32_t value,
                          Site site = Site::here()) {
  return atomic_update(view, i, [=](int32_t old) { return old > value ? old : value; }, site);
}

// ------------------------------------------------------------------------------------------------
// ldmatrix, cp.async

/// Refuse an instruction that the emulated device does not have.
inline void require_architecture(int capability, const char* instruction, Site site) {
  if (simt::machine.architecture >= capability) return;
  simt::fail(site, "%s needs compute capability %d.%d, the device has %d.%d", instruction,
             capability / 10, capability % 10, simt::machine.architecture / 10,
             simt::machine.architecture % 10);
}

template <int N, class T>
void ldmatrix(uint32_t* registers, Shared<T> view, int64_t i, bool transposed, Site site) {
  static_assert(sizeof(T) == 2, "ldmatrix moves 8x8 matrices of 16-bit elements");
  require_architecture(75, "ldmatrix", site);
  simt::WarpRequest request{simt::WarpOp::ldmatrix, kFullMask, site};
  if (lane() < 8 * N)
    request.value = view.address(i, 8, site);  // the other lanes' addresses are not used
  request.argument = N;
  request.transposed = transposed;
  request.registers = registers;
  simt::machine.warp_op(request);
}
template <class T>
void ldmatrix_x4(uint32_t (&r)[4], Shared<T> view, int64_t i, Site site = Site::here()) {
  ldmatrix<4>(r, view, i, false, site);
}
template <class T>
void ldmatrix_x4_trans(uint32_t (&r)[4], Shared<T> view, int64_t i, Site site = Site::here()) {
  ldmatrix<4>(r, view, i, true, site);
}
template <class T>
void ldmatrix_x2(uint32_t (&r)[2], Shared<T> view, int64_t i, Site site = Site::here()) {
  ldmatrix<2>(r, view, i, false, site);
}
template <class T>
void ldmatrix_x2_trans(uint32_t (&r)[2], Shared<T> view, int64_t i, Site site = Site::here()) {
  ldmatrix<2>(r, view, i, true, site);
}

template <class T, class U>
void cp_async16(Shared<T> shared, int64_t i, Global<U> global, int64_t j, bool predicate,
                Site site = Site::here()) {
  static_assert(sizeof(T) == sizeof(U), "a copy keeps the element type");
  constexpr int kCount = 16 / sizeof(T);
  if (predicate) {
    global.check(j, kCount, site);
    global.count(16, false);
  }
  if (simt::machine.architecture < 80) {
    const Vec<T, kCount> zeros = {};
    shared.write(predicate ? static_cast<const void*>(global.data + j) : &zeros, i, kCount, site);
    return;
  }
  const uint32_t byte = shared.address(i, kCount, site);
  simt::machine.copy_async(site, byte, predicate ? global.data + j : nullptr);
}
inline void cp_async_commit() { simt::machine.commit_copies(); }
template <int N>
void cp_async_wait() {
  simt::machine.wait_copies(N);
}

// ------------------------------------------------------------------------------------------------
// tensor cores

inline void mma(simt::WarpOp op, float* d, const uint32_t* a, const uint32_t* b, int variant,
                Site site) {
  simt::WarpRequest request{op, kFullMask, site};
  request.a = a;
  request.b = b;
  request.d = d;
  request.argument = variant;
  simt::machine.warp_op(request);
}
template <class T>
void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                  Site site = Site::here()) {
  require_architecture(80, "mma_m16n8k16", site);
  mma(simt::WarpOp::mma_m16n8k16, d, a, b, std::is_same_v<T, bfloat16>, site);
}
template <Layout A = Layout::row, Layout B = Layout::col>
void mma_m8n8k4(float (&d)[8], const uint32_t (&a)[2], const uint32_t (&b)[2],
                Site site = Site::here()) {
  mma(simt::WarpOp::mma_m8n8k4, d, a, b, (A == Layout::col) * 2 + (B == Layout::col), site);
}

// ------------------------------------------------------------------------------------------------
// arithmetic

inline float exp2_approx(float x) { return std::exp2(x); }
inline float log2_approx(float x) { return std::log2(x); }
inline float rsqrt_approx(float x) { return 1.0f / std::sqrt(x); }
inline float reciprocal_approx(float x) { return 1.0f / x; }

template <class Int>
Int round_saturated(float x) {
  if (x != x) return 0;
  const double most = std::ldexp(1.0, 8 * sizeof(Int) - 1);
  if (std::nearbyint(x) >= most) return std::numeric_limits<Int>::max();
  if (std::nearbyint(x) < -most) return std::numeric_limits<Int>::min();
  return static_cast<Int>(std::nearbyint(x));
}
inline int32_t round_to_int(float x) { return round_saturated<int32_t>(x); }
inline int64_t round_to_int64(float x) { return round_saturated<int64_t>(x); }

inline float to_float(float x) { return x; }
inline float to_float(half x) { return simt::half_to_float(x.bits); }
inline float to_float(bfloat16 x) { return simt::bfloat16_to_float(x.bits); }
template <class T>
T from_float(float x) {
  if constexpr (std::is_same_v<T, half>) {
    return half{simt::float_to_half(x)};
  } else if constexpr (std::is_same_v<T, bfloat16>) {
    return bfloat16{simt::float_to_bfloat16(x)};
  } else {
    return x;
  }
}
template <class T>
uint32_t pack2(float low, float high) {
  return from_float<T>(low).bits | static_cast<uint32_t>(from_float<T>(high).bits) << 16;
}
template <class T>
Vec<float, 2> unpack2(uint32_t word) {
  return {{to_float(T{static_cast<uint16_t>(word & 0xffffu)}),
           to_float(T{static_cast<uint16_t>(word >> 16)})}};
}

// ------------------------------------------------------------------------------------------------
// launch

using Stream = void*;

struct LaunchConfig {
  const char* name;
  Dim3 grid, block;
  int shared_bytes = 0;
  Stream stream = nullptr;
};

template <class... Params, class... Args>
void launch(const LaunchConfig& config, void (*kernel)(Params...), Args... args) {
  struct Call {
    void (*kernel)(Params...);
    std::tuple<Params...> params;
  } call{kernel, std::tuple<Params...>(args...)};
  simt::Launch launch{};
  launch.name = config.name;
  launch.kernel = reinterpret_cast<const void*>(kernel);
  launch.grid[0] = static_cast<int>(config.grid.x);
  launch.grid[1] = static_cast<int>(config.grid.y);
  launch.grid[2] = static_cast<int>(config.grid.z);
  launch.threads = static_cast<int>(config.block.x * config.block.y * config.block.z);
  launch.shared_bytes = config.shared_bytes;
  launch.body = [](void* context) {
    const Call& c = *static_cast<Call*>(context);
    std::apply(c.kernel, c.params);
  };
  launch.context = &call;
  simt::machine.run(launch);
}

}  // namespace megalite
