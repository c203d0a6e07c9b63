// The exponential of the kernels for rows.
#pragma once

#include "cuda/intrinsics.cuh"

namespace megalite {

/// exp(x) to about 2 ulp: log2(e) is split in two, so a large |x| costs no accuracy.
MEGALITE_DEVICE float exp_of(float x) {
  constexpr float kLog2e = 1.44269502f, kLog2eRest = 1.92596303e-8f, kLn2 = 0.693147181f;
  x = x < -200.0f ? -200.0f : x;  // exp is 0 there, and -inf would make NaN below
  const float y = x * kLog2e;
  const float rest = fmaf(x, kLog2eRest, fmaf(x, kLog2e, -y));
  return exp2_approx(y) * fmaf(rest, kLn2, 1.0f);
}

}  // namespace megalite
