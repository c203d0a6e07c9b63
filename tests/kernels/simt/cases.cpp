// C entry points for test_simt_*.py: run a broken kernel or its twin; multiply through each
// tensor-core path; reductions.
#include <cstring>
#include <exception>
#include <string>
#include <vector>

#include "broken.h"
#include "products.h"

using namespace megalite;

namespace {

struct Case {
  const char* name;
  void (*broken)(broken::In, broken::Out);
  void (*correct)(broken::In, broken::Out);
};

#define CASE(name) {#name, broken::name<true>, broken::name<false>}
const Case kCases[] = {
    CASE(missing_syncthreads),
    CASE(missing_syncwarp),
    CASE(shuffle_is_no_memory_barrier),
    CASE(write_after_read),
    CASE(write_after_write),
    CASE(atomic_and_plain),
    CASE(copy_without_wait),
    CASE(copy_waited_one_group_short),
    CASE(copy_without_commit),
    CASE(copy_without_barrier),
    CASE(copy_over_a_buffer_in_use),
    CASE(global_read_out_of_bounds),
    CASE(global_write_out_of_bounds),
    CASE(global_misaligned),
    CASE(shared_out_of_bounds),
    CASE(shared_view_beyond_the_launch),
    CASE(shared_misaligned),
    CASE(uninitialised),
    CASE(barrier_in_a_branch),
    CASE(two_barriers_that_meet),
    CASE(barrier_after_an_exit),
    CASE(mask_without_the_caller),
    CASE(mask_names_absent_lanes),
    CASE(mask_differs_between_lanes),
    CASE(shuffle_from_outside_the_mask),
    CASE(shuffle_against_a_barrier),
    CASE(ldmatrix_misaligned),
    CASE(ldmatrix_without_syncwarp),
    CASE(mma_by_a_part_of_the_warp),
};
#undef CASE

std::string message;

template <class F>
const char* guarded(uint64_t seed, F f) {
  simt::machine.seed = seed;
  try {
    f();
    return nullptr;
  } catch (const std::exception& error) {
    message = error.what();
    return message.c_str();
  }
}

}  // namespace

extern "C" {

const char* case_name(int i) {
  return i < static_cast<int>(std::size(kCases)) ? kCases[i].name : nullptr;
}

/// Null, or what was found. x: 512 floats aligned to 16 bytes, y: 128.
const char* run_case(int i, int is_broken, uint64_t seed, const float* x, float* y) {
  return guarded(seed, [=] {
    const LaunchConfig config{kCases[i].name, {2}, {128}, 4096};
    launch(config, is_broken ? kCases[i].broken : kCases[i].correct, broken::In(x, 512),
           broken::Out(y, 128));
  });
}

/// c[M, N] = a[M, K] b[N, K]^T of halves (or bfloat16) by cp.async, ldmatrix and m16n8k16; M, N
/// multiples of 16, K of 32.
const char* product_sm80(int is_bfloat16, uint64_t seed, const uint16_t* a, const uint16_t* b,
                         float* c, int M, int N, int K) {
  return guarded(seed, [=] {
    if (is_bfloat16) {
      products::launch_sm80<bfloat16>(a, b, c, M, N, K);
    } else {
      products::launch_sm80<half>(a, b, c, M, N, K);
    }
  });
}

/// c[8, 8] = a b for each of the four layouts of m8n8k4 (bit 1: A along m, bit 0: B along k); the
/// quadpairs agree.
const char* product_sm70(int layouts, const uint16_t* a, const uint16_t* b, float* c) {
  return guarded(0, [=] { products::launch_sm70(layouts, a, b, c); });
}

/// y[0] = a float sum by atomics from all warps: its bits depend on the schedule. y[1] = the same
/// by a fixed tree.
const char* sums(uint64_t seed, const float* x, float* y) {
  return guarded(seed, [=] {
    launch(LaunchConfig{"sums", {1}, {512}, 4096}, products::sums, broken::In(x, 512),
           broken::Out(y, 2));
  });
}

/// The 12 counters of a kernel since the last reset, in the order of simt::Counters.
void counters(const char* kernel, uint64_t* out) {
  const simt::Counters& c = simt::machine.counters_by_kernel[kernel];
  const uint64_t values[] = {c.launches,           c.blocks,
                             c.barriers,           c.global_read_bytes,
                             c.global_write_bytes, c.shared_read_bytes,
                             c.shared_write_bytes, c.mma_m16n8k16,
                             c.mma_m8n8k4,         c.ldmatrix,
                             c.ldmatrix_conflicts, c.shared_conflicts};
  std::memcpy(out, values, sizeof values);
}

void reset_counters(int count_banks) {
  simt::machine.counters_by_kernel.clear();
  simt::machine.count_banks = count_banks != 0;
}

/// Rows of `stride` halves read by ldmatrix_x4, and columns of the same tile read word by word.
const char* banks(int stride, float* y) {
  return guarded(0, [=] {
    launch(LaunchConfig{"banks", {1}, {32}, 32 * 64 * 2}, products::banks, stride,
           broken::Out(y, 32));
  });
}

/// A launch that no GPU would take; null only if the emulator does.
const char* launch_of(int threads, int shared_bytes, int blocks_y) {
  return guarded(0, [=] {
    const Dim3 grid{1, static_cast<uint32_t>(blocks_y)};
    launch(LaunchConfig{"nothing", grid, {static_cast<uint32_t>(threads)}, shared_bytes},
           products::nothing);
  });
}

float convert_half(uint16_t h) { return to_float(half{h}); }
uint16_t convert_to(int is_bfloat16, float x) {
  return is_bfloat16 ? from_float<bfloat16>(x).bits : from_float<half>(x).bits;
}
}
