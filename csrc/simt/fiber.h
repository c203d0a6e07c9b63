// Fibers: stacks that the machine switches between in user mode, one for each thread of a block.
#pragma once

#include <cstddef>
#include <vector>

namespace megalite::simt {

/// The stacks of a block's threads and the switches between them and the scheduler.
class Fibers {
 public:
  ~Fibers();
  Fibers() = default;
  Fibers(const Fibers&) = delete;
  Fibers& operator=(const Fibers&) = delete;

  /// Allocate up to `count` stacks; they are kept for later launches.
  void reserve(int count);
  /// The next switch to fiber `i` starts `entry` on an empty stack; `entry` must never return.
  void prepare(int i, void (*entry)());
  /// From the scheduler: run fiber `i` until it calls `leave`.
  void enter(int i);
  /// From fiber `i`: go back to the scheduler. Returns when the scheduler enters `i` again.
  void leave(int i);

 private:
  struct Fiber {
    char* stack;
    void* context;
  };
  std::vector<Fiber> fibers_;
  void* scheduler_ = nullptr;
};

}  // namespace megalite::simt
