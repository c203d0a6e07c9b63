// What the codes of quantised matrices stand for: a block of a row's elements has one scale, and an
// element is a level times it.
//
// Source: Dettmers et al. 2023, arXiv:2305.14314, appendix E (NF4).
#pragma once

#include "host_device.h"

namespace megalite {

inline constexpr int kQuantisedBlock = 64;  // elements of a row that share a scale
inline constexpr int kNf4Levels = 16;

/// The level of an NF4 code in [0, 16).
MEGALITE_HOST_DEVICE float nf4_level(int code) {
  switch (code) {
    case 0:
      return -1.0f;
    case 1:
      return -0.6961928009986877f;
    case 2:
      return -0.5250730514526367f;
    case 3:
      return -0.39491748809814453f;
    case 4:
      return -0.28444138169288635f;
    case 5:
      return -0.18477343022823334f;
    case 6:
      return -0.09105003625154495f;
    case 7:
      return 0.0f;
    case 8:
      return 0.07958029955625534f;
    case 9:
      return 0.16093020141124725f;
    case 10:
      return 0.24611230194568634f;
    case 11:
      return 0.33791524171829224f;
    case 12:
      return 0.44070982933044434f;
    case 13:
      return 0.5626170039176941f;
    case 14:
      return 0.7229568362236023f;
    default:
      return 1.0f;
  }
}

/// The code of an element of a row of NF4: two are in a byte, the first in its upper half.
MEGALITE_HOST_DEVICE int nf4_code(uint8_t pair, int column) {
  return column % 2 == 0 ? pair >> 4 : pair & 15;
}

}  // namespace megalite
