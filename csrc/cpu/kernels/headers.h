// The headers that the CPU kernels use. They come before the pragma that selects an instruction
// set, or their inline functions would be compiled for it, and the linker might pick those for all
// callers.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <initializer_list>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "cpu/kernels/kernels.h"
#include "mask_plan.h"
#include "philox.h"
