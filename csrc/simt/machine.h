// The emulated GPU: runs the blocks of a launch one after another, the threads of a block as fibers
// in a random order given by a seed, and stops at the first undefined behaviour.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "simt/fiber.h"
#include "simt/shadow.h"

namespace megalite {

struct Dim3;

namespace simt {

/// Undefined behaviour of a kernel; the message names kernel, source line, block and thread.
class KernelError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// What a kernel did, summed over its launches. A wavefront is one cycle of the 32 banks of shared
/// memory.
struct Counters {
  uint64_t launches = 0, blocks = 0, barriers = 0;
  uint64_t global_read_bytes = 0, global_write_bytes = 0;
  uint64_t shared_read_bytes = 0, shared_write_bytes = 0;
  uint64_t mma_m16n8k16 = 0, mma_m8n8k4 = 0, ldmatrix = 0, shuffles = 0;
  uint64_t ldmatrix_conflicts = 0;  // wavefronts beyond one for 8 rows
  uint64_t shared_wavefronts = 0,
           shared_conflicts = 0;  // of plain accesses, only while bank counting is on
};

enum class WarpOp {
  sync,
  shuffle,
  shuffle_xor,
  shuffle_down,
  ballot,
  any,
  all,
  ldmatrix,
  mma_m16n8k16,
  mma_m8n8k4
};

/// A lane's operands of a warp-wide operation; kept on the lane's stack until all lanes of `mask`
/// have arrived.
struct WarpRequest {
  WarpOp op;
  uint32_t mask;
  Site site;
  uint32_t value = 0;  // shuffled value, vote, or byte offset of an ldmatrix row
  int argument = 0;    // shuffle lane or delta; ldmatrix matrices; mma variant (see warp.cpp)
  bool transposed = false;
  const uint32_t* a = nullptr;
  const uint32_t* b = nullptr;
  float* d = nullptr;
  uint32_t* registers = nullptr;
  uint32_t result = 0;
};

struct Warp {
  uint32_t members = 0, runnable = 0, waiting = 0, at_barrier = 0, exited = 0;
  uint32_t epoch = 1;
  WarpRequest* requests[32] = {};
};

/// The cp.async copies of one thread that have not landed, oldest first.
struct CopyQueue {
  struct Copy {
    uint32_t offset;
    const void* source;  // null: zeros
    uint32_t group;
  };
  std::vector<Copy> copies;
  uint32_t open_group = 0;
};

/// One shared access of one lane, kept while bank counting is on.
struct BankAccess {
  Site site;
  uint32_t offset;
  uint32_t bytes;
};

struct Launch {
  const char* name;
  const void* kernel;  // its function
  int grid[3], threads, shared_bytes;
  void (*body)(void* context);
  void* context;
};

/// The shape of a kernel's block.
struct Shape {
  int threads, shared_bytes;
};

class Machine {
 public:
  /// Run a launch to its end. Throws KernelError.
  void run(const Launch& launch);

  // ---- for a running thread
  int thread = -1, lane = 0;  // -1: the scheduler, or no launch
  int block[3] = {}, grid[3] = {}, num_threads = 0;
  Tag tag = 0;
  SharedMemory shared;
  Counters* counters = nullptr;
  void barrier(Site site);
  void warp_op(WarpRequest& request);
  void copy_async(Site site, uint32_t offset, const void* source);
  void commit_copies() { ++copies_[thread].open_group; }
  void wait_copies(int groups_left);
  void shared_read(Site site, uint32_t offset, uint32_t bytes) {
    counters->shared_read_bytes += bytes;
    if (count_banks) bank_log_[thread].push_back({site, offset, bytes});
    shared.read(site, tag, offset, bytes);
  }
  void shared_write(Site site, uint32_t offset, uint32_t bytes) {
    counters->shared_write_bytes += bytes;
    if (count_banks) bank_log_[thread].push_back({site, offset, bytes});
    shared.write(site, tag, offset, bytes);
  }
  [[noreturn]] void stop(const std::string& message);
  const char* kernel() const { return launch_ == nullptr ? "(none)" : launch_->name; }

  // ---- settings and results
  uint64_t seed = 0;
  int architecture = 80;  // the compute capability that the device has, times ten
  /// Bytes of shared memory that a block may have: CUDA's programming guide, compute capabilities.
  int shared_limit() const {
    return (architecture == 80 ? 163 : architecture == 86 ? 99 : 96) * 1024;
  }
  bool count_banks = false;
  std::map<std::string, Counters> counters_by_kernel;
  std::map<const void*, Shape> shapes_by_kernel;  // the largest launch of each function

 private:
  struct Running {  // the time from a launch to its end or failure
    Running(Machine* owner, const Launch& launch);
    ~Running();
    Machine* machine;
  };
  static void thread_main();
  void run_block();
  void start_block();
  void run_warp(int warp);
  int choose_warp();
  void release_barrier();
  void finish_thread();
  [[noreturn]] void report_deadlock();
  void count_bank_conflicts();
  uint32_t random();
  void wait_for_scheduler();
  void set_tag();

  const Launch* launch_ = nullptr;
  Fibers fibers_;
  std::vector<Warp> warps_;
  std::vector<CopyQueue> copies_;
  std::vector<std::vector<BankAccess>> bank_log_;
  uint32_t epoch_ = 1;
  int num_exited_ = 0, num_at_barrier_ = 0;
  Site barrier_site_ = {nullptr, 0};
  int barrier_thread_ = 0;
  uint64_t random_state_ = 0;
  std::string error_;
};

extern Machine machine;

/// Shared-memory cycles of the accesses that the lanes of one warp make together, less those of a
/// conflict-free one. Accesses of 8 bytes go half a warp at a time, of 16 bytes a quarter.
struct Wavefronts {
  uint64_t total, ideal;
};
Wavefronts wavefronts(const std::vector<BankAccess>& accesses);

/// Carry out an operation for the lanes of its mask.
void perform(Machine& machine, Warp& warp, int warp_index, const WarpRequest& first);

}  // namespace simt
}  // namespace megalite
