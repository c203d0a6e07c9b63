// The CPU kernels for AVX2: 8 floats per vector.
#include "cpu/kernels/headers.h"

#if defined(__x86_64__)
#pragma GCC target("avx2,fma")
#endif

#define MEGALITE_LANES 8
#define MEGALITE_ISA avx2
#include "cpu/kernels/all.inc"
