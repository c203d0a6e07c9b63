#include "mask_plan.cuh"
