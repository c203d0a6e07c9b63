// Which items share a row: first fit.
#pragma once

#include <cstdint>
#include <vector>

namespace megalite::index {

// Lengths of an item, or room of a row, in the decoder's and in the encoder's stream.
struct Lengths {
  int64_t decoder = 0, encoder = 0;

  bool fits(const Lengths& room) const {
    return decoder <= room.decoder && encoder <= room.encoder;
  }
};

// Rows as slices: row r holds items[bounds[r]] .. items[bounds[r + 1] - 1], in ascending order.
struct Rows {
  std::vector<int64_t> items, bounds;
};

// Put items into rows in their order, each into the first row that has room in both streams.
// A tree over rows finds it in O(log rows) where one stream decides.
// Throws std::invalid_argument: an item is longer than a row, or a length is negative.
Rows first_fit(const std::vector<Lengths>& items, Lengths capacity);

}  // namespace megalite::index
