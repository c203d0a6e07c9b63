// The library that the CPU and CUDA backends implement.
#include "schema.h"

TORCH_LIBRARY(megalite, m) { megalite::define_operators(m); }
