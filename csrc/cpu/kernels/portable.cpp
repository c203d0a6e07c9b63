// The CPU kernels for any machine: 4 floats per vector.
#include "cpu/kernels/headers.h"

#define MEGALITE_LANES 4
#define MEGALITE_ISA portable
#include "cpu/kernels/all.inc"
