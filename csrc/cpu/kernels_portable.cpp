// The CPU kernels for portable: 4 floats a vector.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <initializer_list>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "cpu/kernels.h"
#include "philox.h"

#define MEGALITE_LANES 4
#define MEGALITE_ISA portable
#include "cpu/all_kernels.inc"
