// The plan that lets attention skip tiles, made once a batch.
//
// Shapes:    start, end [B, Sq] -> rows [B, ceil(Sq/32), 4], keys [B, ceil(K/32), 3], all int32.
// Requires:  0 <= start <= end <= K. A row that breaks it is printed and stops the kernel, as a
//            device-side assertion does: the host need not wait for the answer.
// Mapping:   plan_rows: a warp for 32 query rows, a lane for each. plan_keys: a warp for 32 keys;
//            its lanes share the entries of `rows`, and read single rows only where an entry
//            neither covers the keys nor misses them.
// Cost:      reads 8 B Sq bytes, and the entries of `rows` for each entry of `keys`.
// Tested by: tests/kernels/test_attention.py.
#pragma once

#include "row_params.cuh"

namespace megalite {

inline constexpr int kPlanWarps = 4;  // a block; warps are independent

MEGALITE_HOST_DEVICE int64_t tiles_of(int64_t size) { return (size + kPlanTile - 1) / kPlanTile; }

MEGALITE_DEVICE int warp_min(int value) {
  MEGALITE_UNROLL
  for (int lanes = kWarpSize / 2; lanes > 0; lanes /= 2) {
    const int other = shfl_xor(value, lanes);
    value = other < value ? other : value;
  }
  return value;
}
MEGALITE_DEVICE int warp_max(int value) { return -warp_min(-value); }

MEGALITE_KERNEL(kPlanWarps* kWarpSize, 1) void plan_rows(MaskPlanParams p) {
  const int64_t tiles = tiles_of(p.queries);
  const int64_t entry = static_cast<int64_t>(block_x()) * kPlanWarps + warp();
  if (entry >= p.batch * tiles) return;
  const int sequence = static_cast<int>(entry / tiles);
  const int row = static_cast<int>(entry % tiles) * kPlanTile + lane();
  int least_start = p.num_keys, most_end = 0, most_start = 0, least_end = p.num_keys;
  if (row < p.queries) {
    const int64_t at = static_cast<int64_t>(sequence) * p.queries + row;
    const int start = p.start[at], end = p.end[at];
    if (start < 0 || start > end || end > p.num_keys) {
      refuse(
          "attention start, end: 0 <= start <= end <= %d keys must hold, came [%d, %d) in row %d "
          "of sequence %d",
          p.num_keys, start, end, row, sequence);
    }
    if (start < end) least_start = start, most_end = end;
    most_start = start, least_end = end;
  }
  const Vec<int32_t, 4> bounds = {
      {warp_min(least_start), warp_max(most_end), warp_max(most_start), warp_min(least_end)}};
  if (lane() == 0) store_vec(p.rows, entry * 4, bounds);
}

/// What is known of 32 keys: the rows [first, last) that touch them and a bit for each attended key.
struct KeyEntry {
  int first, last;
  uint32_t attended;

  MEGALITE_DEVICE void add(int first_row, int last_row, uint32_t keys) {
    first = first_row < first ? first_row : first;
    last = last_row > last ? last_row : last;
    attended |= keys;
  }
};

/// The keys [from, to) of 32 as bits; bounds outside are cut.
MEGALITE_DEVICE uint32_t key_bits(int from, int to) {
  const uint32_t below_to = to >= 32 ? kFullMask : (1u << to) - 1;
  return from <= 0 ? below_to : below_to & ~((1u << from) - 1);
}

/// Add rows [row, row_end), looking at each.
MEGALITE_DEVICE void add_rows(const MaskPlanParams& p, int64_t sequence, int key, int row,
                              int row_end, KeyEntry& entry) {
  for (int r = row; r < row_end; ++r) {
    const int64_t at = sequence * p.queries + r;
    const int start = p.start[at], end = p.end[at];
    if (start >= key + kPlanTile || end <= key || start >= end) continue;
    entry.add(r, r + 1, key_bits(start - key, end - key));
  }
}

MEGALITE_DEVICE uint32_t warp_or(uint32_t value) {
  MEGALITE_UNROLL
  for (int lanes = kWarpSize / 2; lanes > 0; lanes /= 2) value |= shfl_xor(value, lanes);
  return value;
}

MEGALITE_KERNEL(kPlanWarps* kWarpSize, 1) void plan_keys(MaskPlanParams p) {
  const int64_t row_tiles = tiles_of(p.queries), key_tiles = tiles_of(p.num_keys);
  const int64_t place = static_cast<int64_t>(block_x()) * kPlanWarps + warp();
  if (place >= p.batch * key_tiles) return;
  const int64_t sequence = place / key_tiles;
  const int key = static_cast<int>(place % key_tiles) * kPlanTile, key_end = key + kPlanTile;
  KeyEntry entry = {p.queries, 0, 0};
  for (int64_t tile = lane(); tile < row_tiles; tile += kWarpSize) {
    const Vec<int32_t, 4> bounds = load_vec<4>(p.rows, (sequence * row_tiles + tile) * 4);
    if (bounds.v[0] >= key_end || bounds.v[1] <= key) continue;
    const int row = static_cast<int>(tile) * kPlanTile;
    const int row_end = row + kPlanTile < p.queries ? row + kPlanTile : p.queries;
    if (bounds.v[2] <= key && bounds.v[3] >= key_end) {
      entry.add(row, row_end, kFullMask);
    } else {
      add_rows(p, sequence, key, row, row_end, entry);
    }
  }
  entry = {warp_min(entry.first), warp_max(entry.last), warp_or(entry.attended)};
  if (lane() > 0) return;
  p.keys.store(place * 3, entry.last > 0 ? entry.first : 0);
  p.keys.store(place * 3 + 1, entry.last);
  p.keys.store(place * 3 + 2, static_cast<int32_t>(entry.attended));
}

void mask_plan(const MaskPlanParams& p, Stream stream) {
  constexpr uint32_t kThreads = kPlanWarps * kWarpSize;
  const int64_t entries[2] = {p.batch * tiles_of(p.queries), p.batch * tiles_of(p.num_keys)};
  const auto blocks = [](int64_t count) {
    return static_cast<uint32_t>((count + kPlanWarps - 1) / kPlanWarps);
  };
  if (entries[0] > 0) {
    launch(LaunchConfig{"plan_rows", {blocks(entries[0])}, {kThreads}, 0, stream}, plan_rows, p);
  }
  if (entries[1] > 0) {
    launch(LaunchConfig{"plan_keys", {blocks(entries[1])}, {kThreads}, 0, stream}, plan_keys, p);
  }
}

}  // namespace megalite
