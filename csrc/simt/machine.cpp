#include "simt/machine.h"

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <mutex>

namespace megalite::simt {

Machine machine;

namespace {

const char* base_name(const char* path) {
  const char* slash = std::strrchr(path, '/');
  return slash ? slash + 1 : path;
}

std::string place(Site site) {
  return std::string(base_name(site.file)) + ":" + std::to_string(site.line);
}

const char* name_of(WarpOp op) {
  static const char* names[] = {"syncwarp", "shfl", "shfl_xor", "shfl_down",    "ballot",
                                "any",      "all",  "ldmatrix", "mma_m16n8k16", "mma_m8n8k4"};
  return names[static_cast<int>(op)];
}

template <class F>
void for_each_lane(uint32_t mask, F f) {
  for (; mask != 0; mask &= mask - 1) f(__builtin_ctz(mask));
}

/// Lanes of one mask must be at the same operation with the same mask.
void require_same(const WarpRequest& mine, int lane, const WarpRequest& other) {
  if (other.mask == mine.mask && other.op == mine.op && other.site.line == mine.site.line) return;
  fail(mine.site, "%s with mask 0x%08x: lane %d is at %s with mask 0x%08x at %s", name_of(mine.op),
       mine.mask, lane, name_of(other.op), other.mask, place(other.site).c_str());
}

}  // namespace

void fail(Site site, const char* format, ...) {
  char text[512];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  char message[1024];
  std::snprintf(message, sizeof message, "simt: kernel %s, %s, block (%d, %d, %d), thread %d: %s",
                machine.kernel(), place(site).c_str(), machine.block[0], machine.block[1],
                machine.block[2], machine.thread, text);
  machine.stop(message);
}

uint32_t Machine::random() {  // splitmix64
  random_state_ += 0x9e3779b97f4a7c15u;
  uint64_t z = random_state_;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return static_cast<uint32_t>((z ^ (z >> 31)) >> 32);
}

namespace {

constexpr int kMaxThreads = 1024;
constexpr int kMaxGrid[3] = {0x7fffffff, 65535, 65535};

void require(const Launch& launch, const char* what, int value, int low, int high) {
  if (value >= low && value <= high) return;
  throw KernelError(std::string("simt: launch of ") + launch.name + ": " + what + " must be " +
                    std::to_string(low) + " to " + std::to_string(high) + ", not " +
                    std::to_string(value));
}

void require_possible(const Launch& launch) {
  require(launch, "threads of a block", launch.threads, 1, kMaxThreads);
  require(launch, "bytes of shared memory", launch.shared_bytes, 0, machine.shared_limit());
  const char* names[] = {"grid x", "grid y", "grid z"};
  for (int i = 0; i < 3; ++i) require(launch, names[i], launch.grid[i], 1, kMaxGrid[i]);
}

}  // namespace

void Machine::run(const Launch& launch) {
  static std::mutex one_launch;
  const std::lock_guard<std::mutex> hold(one_launch);
  require_possible(launch);
  const Running running(this, launch);
  num_threads = launch.threads;
  random_state_ = seed;
  std::copy(launch.grid, launch.grid + 3, grid);
  counters = &counters_by_kernel[launch.name];
  ++counters->launches;
  Shape& shape = shapes_by_kernel[launch.kernel];
  shape.threads = std::max(shape.threads, launch.threads);
  shape.shared_bytes = std::max(shape.shared_bytes, launch.shared_bytes);
  fibers_.reserve(num_threads);
  std::vector<uint32_t> order(static_cast<size_t>(grid[0]) * grid[1] * grid[2]);
  for (uint32_t i = 0; i < order.size(); ++i) {  // a random order of blocks, grown by insertion
    const uint32_t j = random() % (i + 1);
    order[i] = order[j];
    order[j] = i;
  }
  for (const uint32_t index : order) {
    block[0] = static_cast<int>(index % grid[0]);
    block[1] = static_cast<int>(index / grid[0] % grid[1]);
    block[2] = static_cast<int>(index / grid[0] / grid[1]);
    run_block();
  }
}

Machine::Running::Running(Machine* owner, const Launch& launch) : machine(owner) {
  machine->launch_ = &launch;
}
Machine::Running::~Running() {
  machine->launch_ = nullptr;
  machine->thread = -1;
}

void Machine::start_block() {
  epoch_ = 1;
  num_exited_ = num_at_barrier_ = 0;
  barrier_site_ = {nullptr, 0};
  error_.clear();
  shared.reset(launch_->shared_bytes);
  warps_.assign(static_cast<size_t>(num_threads + 31) / 32, Warp{});
  if (static_cast<int>(copies_.size()) < num_threads) copies_.resize(num_threads);
  bank_log_.resize(num_threads);
  for (int t = 0; t < num_threads; ++t) {
    warps_[t / 32].members |= 1u << (t % 32);
    copies_[t].copies.clear();
    copies_[t].open_group = 0;
    bank_log_[t].clear();
    fibers_.prepare(t, &Machine::thread_main);
  }
  for (Warp& warp : warps_) warp.runnable = warp.members;
}

void Machine::run_block() {
  start_block();
  ++counters->blocks;
  while (num_exited_ < num_threads) {
    const int warp = choose_warp();
    if (warp >= 0) {
      run_warp(warp);
    } else if (num_at_barrier_ == num_threads) {
      release_barrier();
    } else {
      report_deadlock();
    }
    if (!error_.empty()) throw KernelError(error_);
  }
  count_bank_conflicts();
}

/// A random warp that can run, or -1.
int Machine::choose_warp() {
  const int count = static_cast<int>(warps_.size());
  const int first = static_cast<int>(random() % static_cast<uint32_t>(count));
  for (int i = 0; i < count; ++i) {
    const int warp = (first + i) % count;
    if (warps_[warp].runnable != 0) return warp;
  }
  return -1;
}

/// Run each lane that can, in a random order, until it waits; a few rounds, then perhaps another
/// warp.
void Machine::run_warp(int index) {
  Warp& warp = warps_[index];
  const uint32_t dice = random();
  const int rounds = 1 + static_cast<int>(dice % 8);
  const uint32_t stride = (dice >> 8) | 1u, start = dice >> 20;
  for (int round = 0; round < rounds && warp.runnable != 0; ++round) {
    for (uint32_t i = 0; i < 32; ++i) {
      const int l =
          static_cast<int>((start + i * stride + static_cast<uint32_t>(round) * 7u) & 31u);
      if (!(warp.runnable >> l & 1u)) continue;
      lane = l;
      thread = index * 32 + l;
      set_tag();
      fibers_.enter(thread);
      if (!error_.empty()) return;
    }
  }
}

void Machine::set_tag() {
  tag = make_tag(epoch_, warps_[thread / 32].epoch, static_cast<uint32_t>(thread));
}

void Machine::thread_main() {
  machine.launch_->body(machine.launch_->context);
  machine.finish_thread();
}

void Machine::finish_thread() {
  if (num_at_barrier_ > 0) {
    fail(barrier_site_, "divergent barrier: this thread ends while thread %d waits at syncthreads",
         barrier_thread_);
  }
  Warp& warp = warps_[thread / 32];
  warp.exited |= 1u << lane;
  warp.runnable &= ~(1u << lane);
  ++num_exited_;
  wait_for_scheduler();
}

void Machine::stop(const std::string& message) {
  error_ = message;
  if (thread >= 0) wait_for_scheduler();  // which never comes back here
  throw KernelError(message);
}

void Machine::wait_for_scheduler() { fibers_.leave(thread); }

void Machine::barrier(Site site) {
  if (num_exited_ > 0)
    fail(site, "divergent barrier: syncthreads after another thread of the block has ended");
  if (num_at_barrier_ == 0) {
    barrier_site_ = site;
    barrier_thread_ = thread;
  } else if (site.line != barrier_site_.line || std::strcmp(site.file, barrier_site_.file) != 0) {
    fail(site, "divergent barrier: thread %d waits at the syncthreads of %s", barrier_thread_,
         place(barrier_site_).c_str());
  }
  ++num_at_barrier_;
  Warp& warp = warps_[thread / 32];
  warp.at_barrier |= 1u << lane;
  warp.runnable &= ~(1u << lane);
  wait_for_scheduler();
}

void Machine::release_barrier() {
  ++epoch_;
  ++counters->barriers;
  num_at_barrier_ = 0;
  for (Warp& warp : warps_) {
    ++warp.epoch;
    warp.runnable = warp.at_barrier;
    warp.at_barrier = 0;
  }
  if (count_banks) count_bank_conflicts();
}

void Machine::warp_op(WarpRequest& request) {
  const int index = thread / 32, self = lane;
  Warp& warp = warps_[index];
  const uint32_t bit = 1u << self;
  if (!(request.mask & bit))
    fail(request.site, "%s: mask 0x%08x lacks the calling lane %d", name_of(request.op),
         request.mask, self);
  if (request.mask & (warp.exited | ~warp.members)) {
    fail(request.site, "%s: mask 0x%08x names lanes that have ended or do not exist (0x%08x)",
         name_of(request.op), request.mask, request.mask & (warp.exited | ~warp.members));
  }
  warp.requests[self] = &request;
  warp.waiting |= bit;
  const bool is_last = (warp.waiting & request.mask) == request.mask;
  const uint32_t others = warp.waiting & request.mask & ~bit;
  // Each lane is compared with one that waits, the last with all.
  for_each_lane(is_last ? others : others & -others,
                [&](int l) { require_same(request, l, *warp.requests[l]); });
  if (is_last) {
    perform(*this, warp, index, request);
    warp.waiting &= ~request.mask;
    warp.runnable |= request.mask;
    if (request.op == WarpOp::sync) ++warp.epoch;
    set_tag();
  } else {
    warp.runnable &= ~bit;
    wait_for_scheduler();
  }
}

void Machine::report_deadlock() {
  const int last_thread = thread;
  thread = -1;  // the scheduler, not a fiber, reports
  for (size_t w = 0; w < warps_.size(); ++w) {
    const Warp& warp = warps_[w];
    if (warp.waiting == 0) continue;
    const int l = __builtin_ctz(warp.waiting);
    const WarpRequest& request = *warp.requests[l];
    const uint32_t missing = request.mask & ~warp.waiting;
    char text[512];
    std::snprintf(text, sizeof text,
                  "simt: kernel %s, %s, block (%d, %d, %d), thread %zu: %s with mask 0x%08x waits "
                  "for lanes 0x%08x that "
                  "%s",
                  kernel(), place(request.site).c_str(), block[0], block[1], block[2], w * 32 + l,
                  name_of(request.op), request.mask, missing,
                  missing & warp.exited ? "have ended"
                  : missing & warp.at_barrier
                      ? ("wait at the syncthreads of " + place(barrier_site_)).c_str()
                      : "wait elsewhere");
    throw KernelError(text);
  }
  thread = last_thread;
  throw KernelError(std::string("simt: kernel ") + kernel() +
                    ": divergent barrier: " + std::to_string(num_at_barrier_) + " of " +
                    std::to_string(num_threads) + " threads wait at syncthreads");
}

void Machine::copy_async(Site site, uint32_t offset, const void* source) {
  counters->shared_write_bytes += 16;
  shared.begin_copy(site, tag, offset);
  copies_[thread].copies.push_back({offset, source, copies_[thread].open_group});
}

void Machine::wait_copies(int groups_left) {
  CopyQueue& queue = copies_[thread];
  size_t landed = 0;
  for (; landed < queue.copies.size(); ++landed) {
    const CopyQueue::Copy& copy = queue.copies[landed];
    if (copy.group + static_cast<uint32_t>(groups_left) >= queue.open_group) break;
    shared.finish_copy(tag, copy.offset, copy.source);
  }
  queue.copies.erase(queue.copies.begin(),
                     queue.copies.begin() + static_cast<std::ptrdiff_t>(landed));
}

/// Match the lanes' accesses by source line, in order, and count the cycles that each group takes.
void Machine::count_bank_conflicts() {
  if (!count_banks) return;
  std::vector<BankAccess> together;
  for (int first = 0; first < num_threads; first += 32) {
    const int last = std::min(first + 32, num_threads);
    std::vector<size_t> next(32, 0);
    for (;;) {
      together.clear();
      for (int t = first; t < last; ++t) {
        size_t& i = next[t - first];
        if (i >= bank_log_[t].size()) continue;
        const BankAccess& access = bank_log_[t][i];
        if (!together.empty() && access.site.line != together[0].site.line) continue;
        together.push_back(access);
        ++i;
      }
      if (together.empty()) break;
      const Wavefronts cycles = wavefronts(together);
      counters->shared_wavefronts += cycles.total;
      counters->shared_conflicts += cycles.total - cycles.ideal;
    }
    for (int t = first; t < last; ++t) bank_log_[t].clear();
  }
}

Wavefronts wavefronts(const std::vector<BankAccess>& accesses) {
  const size_t lanes = accesses[0].bytes <= 4 ? 32 : 128 / accesses[0].bytes;
  Wavefronts result{0, 0};
  for (size_t first = 0; first < accesses.size(); first += lanes) {
    std::vector<uint32_t> words[32];
    for (size_t i = first; i < std::min(first + lanes, accesses.size()); ++i) {
      const uint32_t end = accesses[i].offset + accesses[i].bytes;
      for (uint32_t word = accesses[i].offset / 4; word * 4 < end; ++word) {
        std::vector<uint32_t>& bank = words[word % 32];
        if (std::find(bank.begin(), bank.end(), word) == bank.end()) bank.push_back(word);
      }
    }
    size_t most = 0;
    for (const auto& bank : words) most = std::max(most, bank.size());
    result.total += most;
    ++result.ideal;
  }
  return result;
}

}  // namespace megalite::simt
