// The CPU kernels for avx2: 8 floats a vector.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <initializer_list>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "cpu/kernels.h"
#include "philox.h"

#if defined(__x86_64__)
#pragma GCC target("avx2,fma")
#endif

#define MEGALITE_LANES 8
#define MEGALITE_ISA avx2
#include "cpu/all_kernels.inc"
