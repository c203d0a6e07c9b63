// The plan by which attention skips tiles, made once per batch.
//
// Shapes:    start, end [B, Sq] -> rows [B, ceil(Sq/32), 4], keys [B, ceil(K/32), 3], all int32.
// Requires:  0 <= start <= end <= K. A row that violates this is printed and traps, like a
//            device-side assertion, so that the host need not synchronize.
// Mapping:   plan_rows: a warp per 32 query rows, one lane each. plan_keys: a warp per 32 keys; its
//            lanes divide the entries of `rows` among them and read single rows only where an entry
//            neither covers the keys nor misses them.
// Cost:      reads 8 B Sq bytes, and all entries of `rows` for each entry of `keys`.
// Tested by: tests/kernels/test_attention.py.
#pragma once

#include "cuda/attention/params.cuh"

namespace megalite {

static_assert(kPlanTile == kWarpSize, "a lane has a row; an entry of keys has a bit for each");
inline constexpr int kPlanWarps = 4;  // of a block; warps are independent

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
  const int64_t tiles = plan_entries<int64_t>(p.queries);
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

/// An entry of `keys`: the rows [first, last) that touch its keys, and a bit for each attended key.
struct KeyEntry {
  int first, last;
  uint32_t attended;

  MEGALITE_DEVICE void add(int first_row, int last_row, uint32_t keys) {
    first = first_row < first ? first_row : first;
    last = last_row > last ? last_row : last;
    attended |= keys;
  }
};

/// Bits [from, to) of an entry's keys; bounds are clamped to [0, kPlanTile].
MEGALITE_DEVICE uint32_t key_bits(int from, int to) {
  const uint32_t below_to = to >= kPlanTile ? kFullMask : (1u << to) - 1;
  return from <= 0 ? below_to : below_to & ~((1u << from) - 1);
}

/// Add rows [row, row_end) one by one.
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
  const int64_t row_tiles = plan_entries<int64_t>(p.queries);
  const int64_t key_tiles = plan_entries<int64_t>(p.num_keys);
  const int64_t index = static_cast<int64_t>(block_x()) * kPlanWarps + warp();
  if (index >= p.batch * key_tiles) return;
  const int64_t sequence = index / key_tiles;
  const int key = static_cast<int>(index % key_tiles) * kPlanTile, key_end = key + kPlanTile;
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
  p.keys.store(index * 3, entry.last > 0 ? entry.first : 0);
  p.keys.store(index * 3 + 1, entry.last);
  p.keys.store(index * 3 + 2, static_cast<int32_t>(entry.attended));
}

}  // namespace megalite
