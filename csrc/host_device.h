// For headers that host compilers, nvcc and NVRTC all read: the fixed-width integers, and
// MEGALITE_HOST_DEVICE before a function that host code and kernels call.
#pragma once

#ifdef __CUDACC_RTC__
typedef signed char int8_t;
typedef short int16_t;
typedef int int32_t;
typedef long long int64_t;
typedef unsigned char uint8_t;
typedef unsigned short uint16_t;
typedef unsigned int uint32_t;
typedef unsigned long long uint64_t;
#else
#include <cstdint>
#endif

#ifdef __CUDACC__
#define MEGALITE_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define MEGALITE_HOST_DEVICE inline
#endif
