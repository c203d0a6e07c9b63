#include "cpu/instruction_set.h"

#include <cstdlib>
#include <stdexcept>

namespace megalite::cpu {
namespace {

std::vector<const Kernels*> runnable_kernels() {
  std::vector<const Kernels*> found;
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq"))
    found.push_back(&avx512_kernels());
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
    found.push_back(&avx2_kernels());
#endif
  found.push_back(&portable_kernels());
  return found;
}

}  // namespace

const Kernels& choose(const std::string& name, const std::vector<const Kernels*>& runnable) {
  if (name.empty()) return *runnable.front();
  std::string names;
  for (const Kernels* each : runnable) {
    if (name == each->name) return *each;
    names += (names.empty() ? "" : ", ") + std::string(each->name);
  }
  if (name != "avx512" && name != "avx2" && name != "portable")
    throw std::runtime_error("MEGALITE_CPU_ISA: must be avx512, avx2 or portable, came " + name +
                             "; set one of them that this machine has (" + names +
                             "), or unset it for the first");
  throw std::runtime_error("MEGALITE_CPU_ISA: must be an instruction set that this machine has (" +
                           names + "), came " + name +
                           "; set one of these, or unset it for the first");
}

const Kernels& kernels() {
  static const Kernels& chosen = []() -> const Kernels& {
    const char* name = std::getenv("MEGALITE_CPU_ISA");
    return choose(name ? name : "", runnable_kernels());
  }();
  return chosen;
}

}  // namespace megalite::cpu
