// Philox4x32-10: four 32-bit random words from a 64-bit key and a 128-bit counter.
// The same bits as megalite/ops/random.py. Source: Salmon et al. 2011.
#pragma once

#include "host_device.h"

namespace megalite {

struct PhiloxWords {
  uint32_t word[4];
};

MEGALITE_HOST_DEVICE PhiloxWords philox(uint64_t key, uint32_t c0, uint32_t c1, uint32_t c2,
                                        uint32_t c3) {
  uint32_t k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = static_cast<uint64_t>(c0) * 0xD2511F53u;
    const uint64_t b = static_cast<uint64_t>(c2) * 0xCD9E8D57u;
    const uint32_t next0 = static_cast<uint32_t>(b >> 32) ^ c1 ^ k0;
    const uint32_t next2 = static_cast<uint32_t>(a >> 32) ^ c3 ^ k1;
    c0 = next0;
    c1 = static_cast<uint32_t>(b);
    c2 = next2;
    c3 = static_cast<uint32_t>(a);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

/// Dropout of probability p drops an element whose random word is below this.
inline uint32_t keep_threshold(double p) { return static_cast<uint32_t>(p * 4294967296.0); }

}  // namespace megalite
