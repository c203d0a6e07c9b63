// Prints the kernels that MEGALITE_CPU_ISA's value, the first argument, chooses on a machine that can
// run those of the other arguments, widest first; or the error. For test_instruction_set.py.
#include "cpu/instruction_set.h"

#include <cstdio>
#include <exception>

namespace megalite::cpu {

const Kernels kTables[] = {{"avx512"}, {"avx2"}, {"portable"}};
const Kernels& avx512_kernels() { return kTables[0]; }
const Kernels& avx2_kernels() { return kTables[1]; }
const Kernels& portable_kernels() { return kTables[2]; }

}  // namespace megalite::cpu

int main(int count, char** arguments) {
  using namespace megalite::cpu;
  std::vector<const Kernels*> runnable;
  for (int i = 2; i < count; ++i) {
    for (const Kernels& table : kTables)
      if (std::string(arguments[i]) == table.name) runnable.push_back(&table);
  }
  try {
    std::puts(choose(arguments[1], runnable).name);
  } catch (const std::exception& error) {
    std::puts(error.what());
  }
}
