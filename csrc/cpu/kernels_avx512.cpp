// The CPU kernels for avx512: 16 floats a vector.
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
#pragma GCC target("avx512f,avx512dq,avx512vl,avx512bw,fma,prefer-vector-width=512")
#endif

#define MEGALITE_LANES 16
#define MEGALITE_ISA avx512
#include "cpu/all_kernels.inc"
