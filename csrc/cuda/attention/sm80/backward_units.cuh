// Sums over blocks in attention's backward pass on sm_80 that have no order: as integers.
//
// A float's sum depends on the order of its terms, an integer's doesn't. So a block multiplies its
// terms by a power of two, the same for all terms of a sum, rounds them to integers and adds these
// atomically; at the end the sum is divided by it. The power is the largest with which the sum fits:
//   dq_i = sum over j of P_ij (dP_ij - delta_i) k_j, with the P_ij adding up to 1, so
//   |dq_ih| <= (|dO_i| max_j |v_j| / (1 - p) + |delta_i|) max_jh |k_jh|,
// with p of dropout, over the keys that some row attends to. |dq| 2^power is below 2^30, and the
// error of a term 2^-30 of the bound or less. For comparison, delta_i is computed from an output
// rounded to T, which is an error of 2^-12 (half) or 2^-9 (bfloat16) of |dO_i| |out_i|.
// A bound that is infinite or NaN makes the row's dq NaN, and a key that is not finite so all of its
// head's: a sum that it entered, also times a probability of 0, as in a tile that other rows of the
// same tile see, would be rounded to an integer, and nobody would know.
#pragma once

#include "cuda/attention/tiles.cuh"

namespace megalite::sm80 {

inline constexpr int kMaximaKeys = 256;  // of a chunk, whose largest numbers a block looks for
inline constexpr int kRowBits = 29, kDistanceBits = 36;  // see unit_of; 2^26 rows fit in dbias
inline constexpr float kNan = __builtin_bit_cast(float, 0x7fc00000u);

MEGALITE_DEVICE uint32_t magnitude_bits(float x) { return as_uint(x) & 0x7fffffffu; }

/// The larger of two numbers >= 0; NaN if one is.
MEGALITE_DEVICE float larger_magnitude(float a, float b) {
  return as_float(magnitude_bits(a) > magnitude_bits(b) ? magnitude_bits(a) : magnitude_bits(b));
}

/// The largest of a warp's numbers >= 0.
MEGALITE_DEVICE float warp_magnitude(float x) {
  for (int lanes = kWarpSize / 2; lanes > 0; lanes /= 2)
    x = larger_magnitude(x, shfl_xor(x, lanes));
  return x;
}

/// A bound of the length of a vector: from its squares, or where these leave fp32, from magnitudes.
MEGALITE_DEVICE float length(float squares, float magnitudes) {
  const bool is_exact = squares > 1e-30f && squares < 1e30f;
  return is_exact ? 1.001f * squares * rsqrt_approx(squares) : magnitudes;
}

/// The power of two that takes a bound to [2^bits, 2^(bits + 1)), or below for one near fp32's least.
MEGALITE_DEVICE float unit_of(float bound, int bits) {
  const int exponent = static_cast<int>(magnitude_bits(bound) >> 23);
  if (exponent == 255) return kNan;
  const int of_unit = 127 + bits - (exponent - 127);
  return as_float(static_cast<uint32_t>(smaller(of_unit, 252)) << 23);
}

/// 1 / unit.
MEGALITE_DEVICE float inverse_unit(float unit) {
  return unit != unit ? unit : as_float((254u << 23) - as_uint(unit));
}

}  // namespace megalite::sm80
