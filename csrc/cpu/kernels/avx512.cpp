// The CPU kernels for AVX-512: 16 floats per vector.
#include "cpu/kernels/headers.h"

#if defined(__x86_64__)
#pragma GCC target("avx512f,avx512dq,avx512vl,avx512bw,fma,prefer-vector-width=512")
#endif

#define MEGALITE_LANES 16
#define MEGALITE_ISA avx512
#include "cpu/kernels/all.inc"
