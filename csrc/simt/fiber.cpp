#include "simt/fiber.h"

#include <sys/mman.h>

#include <cstdint>
#include <stdexcept>

#if !defined(__x86_64__) || defined(MEGALITE_SIMT_UCONTEXT)
#define MEGALITE_USE_UCONTEXT
#include <ucontext.h>
#endif

namespace megalite::simt {
namespace {

constexpr size_t kStackBytes =
    256 * 1024;  // kernels hold their fragments in arrays on it; pages are touched lazily
constexpr size_t kGuardBytes = 4096;
// Stacks begin at different cache sets, or the frames of all lanes would evict each other.
constexpr size_t kColourBytes = 64 * 17;
constexpr size_t kNumColours = 60;

char* map_stack() {
  void* p = mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED)
    throw std::runtime_error("simt: no memory for the stack of an emulated thread");
  mprotect(p, kGuardBytes, PROT_NONE);
  return static_cast<char*>(p);
}

}  // namespace

#ifndef MEGALITE_USE_UCONTEXT
// Saves the callee-saved registers on the running stack, its pointer in *rdi, and continues on the
// stack rsi.
extern "C" void megalite_simt_switch(void** save, void* load);
asm(R"(
.text
.local megalite_simt_switch
.type megalite_simt_switch, @function
megalite_simt_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size megalite_simt_switch, .-megalite_simt_switch
)");

void Fibers::prepare(int i, void (*entry)()) {
  Fiber& fiber = fibers_[i];
  char* top = fiber.stack + kStackBytes - kColourBytes * (static_cast<size_t>(i) % kNumColours);
  // A function starts with the stack pointer 8 below a multiple of 16: the slot of its return
  // address.
  void** slot = reinterpret_cast<void**>((reinterpret_cast<uintptr_t>(top) & ~uintptr_t{15}) - 8);
  slot[0] = nullptr;
  slot[-1] = reinterpret_cast<void*>(entry);
  for (int r = 2; r <= 7; ++r) slot[-r] = nullptr;
  fiber.context = slot - 7;
}

void Fibers::enter(int i) { megalite_simt_switch(&scheduler_, fibers_[i].context); }
void Fibers::leave(int i) { megalite_simt_switch(&fibers_[i].context, scheduler_); }

#else

void Fibers::prepare(int i, void (*entry)()) {
  Fiber& fiber = fibers_[i];
  if (fiber.context == nullptr) fiber.context = new ucontext_t;
  auto* context = static_cast<ucontext_t*>(fiber.context);
  getcontext(context);
  context->uc_stack.ss_sp = fiber.stack + kGuardBytes;
  context->uc_stack.ss_size =
      kStackBytes - kGuardBytes - kColourBytes * (static_cast<size_t>(i) % kNumColours);
  context->uc_link = nullptr;
  makecontext(context, entry, 0);
}

void Fibers::enter(int i) {
  if (scheduler_ == nullptr) scheduler_ = new ucontext_t;
  swapcontext(static_cast<ucontext_t*>(scheduler_), static_cast<ucontext_t*>(fibers_[i].context));
}
void Fibers::leave(int i) {
  swapcontext(static_cast<ucontext_t*>(fibers_[i].context), static_cast<ucontext_t*>(scheduler_));
}
#endif

void Fibers::reserve(int count) {
  while (static_cast<int>(fibers_.size()) < count) fibers_.push_back({map_stack(), nullptr});
}

Fibers::~Fibers() {
  for (Fiber& fiber : fibers_) {
    munmap(fiber.stack, kStackBytes);
#ifdef MEGALITE_USE_UCONTEXT
    delete static_cast<ucontext_t*>(fiber.context);
#endif
  }
#ifdef MEGALITE_USE_UCONTEXT
  delete static_cast<ucontext_t*>(scheduler_);
#endif
}

}  // namespace megalite::simt
