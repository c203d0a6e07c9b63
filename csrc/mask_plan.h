// The granularity of the mask's tile plan (docs/design.md), for every file that makes or reads a
// plan. The same number as TILE of megalite/ops/mask.py.
#pragma once

#include "host_device.h"

namespace megalite {

inline constexpr int kPlanTile = 32;  // query rows, or keys, that an entry of the plan covers

/// Entries of the plan for `size` query rows or keys.
template <class Int>
constexpr MEGALITE_HOST_DEVICE Int plan_entries(Int size) {
  return (size + kPlanTile - 1) / kPlanTile;
}

}  // namespace megalite
