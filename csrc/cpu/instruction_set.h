// Which instruction set's kernels run.
#pragma once

#include <string>
#include <vector>

#include "cpu/kernels/kernels.h"

namespace megalite::cpu {

/// The kernels of the widest instruction set that this machine has, or of the one that the
/// environment variable MEGALITE_CPU_ISA names; read once. Throws as `choose` does.
const Kernels& kernels();

/// The kernels called `name` among those that the machine can run, widest first; the first if
/// `name` is empty. Throws std::runtime_error: there are none of that name, or the machine can't
/// run them.
const Kernels& choose(const std::string& name, const std::vector<const Kernels*>& runnable);

}  // namespace megalite::cpu
