// The 16-bit floating-point formats, converted as the GPU does: exactly to float, to nearest even
// from it.
#pragma once

#include <cstdint>
#include <cstring>

namespace megalite::simt {

inline float bits_to_float(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}
inline uint32_t float_to_bits(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}

inline float half_to_float(uint16_t h) {
  // Shifted into place, the exponent is 112 too small: a product by 2^112 corrects normal and
  // subnormal numbers alike.
  uint32_t bits = float_to_bits(bits_to_float(static_cast<uint32_t>(h & 0x7fffu) << 13) * 0x1p112f);
  if ((h & 0x7c00u) == 0x7c00u) bits |= 0x7f800000u;
  return bits_to_float(bits | static_cast<uint32_t>(h & 0x8000u) << 16);
}

inline uint16_t float_to_half(float x) {
  const uint32_t bits = float_to_bits(x), magnitude = bits & 0x7fffffffu;
  const uint16_t sign = static_cast<uint16_t>(bits >> 16 & 0x8000u);
  if (magnitude > 0x7f800000u) return 0x7fff;
  if (magnitude >= 0x477ff000u) return sign | 0x7c00;  // 65520 and above round to infinity
  if (magnitude < 0x38800000u) {  // subnormal: adding 0.5 rounds to multiples of 2^-24
    return sign |
           static_cast<uint16_t>(float_to_bits(bits_to_float(magnitude) + 0.5f) - 0x3f000000u);
  }
  return sign |
         static_cast<uint16_t>((magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1u)) >> 13);
}

inline float bfloat16_to_float(uint16_t b) { return bits_to_float(static_cast<uint32_t>(b) << 16); }

inline uint16_t float_to_bfloat16(float x) {
  const uint32_t bits = float_to_bits(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fff;
  return static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

}  // namespace megalite::simt
