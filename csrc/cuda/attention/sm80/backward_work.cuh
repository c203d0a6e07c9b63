// How attention's backward pass on sm_80 divides its work among blocks, and the workspace that it
// needs; both are functions of the shapes alone, and so are the bits of the gradients.
//
// Items: a block has one tile of keys of one key head, and of the pairs (head of the group, tile of
//   rows) that touch it those whose sum head + tile is `part` modulo the number of parts. So the
//   parts of a tile are of equal length for any mask. There is more than one where the tiles alone
//   would leave SMs idle: few sequences and key heads, or multi-query attention.
// Order: tiles of keys from the first on, since under a causal mask those are the longest; but only
//   `together` of a key head at a time, then of the next, so that the blocks that run at the same
//   time read the same Q_i and dO_i and add to the same dQ_i, which then are in L2.
// Sums: dq is summed over the tiles of keys, dbias over all items, with atomic additions of
//   integers (backward_units.cuh), whose result has no order. dk and dv of more than one part are
//   summed in slots: part p adds to slot p % slots, after the parts before it of the same slot.
#pragma once

#include "cuda/attention/sm80/backward_traits.cuh"
#include "cuda/attention/sm80/backward_units.cuh"

namespace megalite::sm80 {

inline constexpr int64_t kMiB = 1 << 20;

/// A block's place, the parts of the work, and the workspace's layout in fp32 elements:
///   states   [B, N, row tiles, 4, kRows]: log2(e) lse, delta, start and end of each row
///   units    [B, N, row tiles, kRows]: what a gradient of a row's q is multiplied by, see there
///   maxima   [B, G, chunks, 2]: the largest |k| and length of v
///   steepest [N]: the largest score gradient that there may be
///   dq       [B, N, row tiles, kRows * kDim] int32: in the order of the threads' accumulators
///   dbias    [N, Sq + Sk - 1] int64
///   slots    [slots, B, G, key tiles, 2, kKeys * kDim]: dk and dv, in the same order
///   turns    [B, G, key tiles, slots] int32: parts that have been added to a slot
///   tickets  [B, G] int32: items that have been started
struct BackwardWork {
  int key_tiles, row_tiles, chunks, group_heads;
  int together, parts, slots;  // slots: 0 if there is one part
  int part_bits, item_bits;    // logarithms of parts, and of the items that are together
  int64_t units_at, maxima_at, steepest_at, dq_at, dbias_at, slots_at, turns_at, tickets_at, size;
};

/// The bytes that are summed over blocks.
struct PartialBytes {
  int64_t dq, slot;  // of all dq; of a slot of all dk and dv

  template <class C, class T>
  static PartialBytes of(const AttentionParams<T>& p) {
    const int64_t keys = divide_up(p.keys, C::kKeys) * int64_t{C::kKeys};
    const int64_t rows = divide_up(p.queries, C::kRows) * int64_t{C::kRows};
    return {int64_t{p.batch} * p.heads * rows * C::kDim * 4,
            int64_t{p.batch} * p.groups * keys * C::kDim * 8};
  }
  /// The slots that there is memory for: 64 MiB, but with a dq of at most 32 heads of 128 at 8192
  /// rows no more than 0.15 GiB in all, and with a larger one at least a quarter of it.
  int64_t most_slots() const {
    const int64_t usual = 64 * kMiB, rest = 153 * kMiB - dq;
    if (dq > 128 * kMiB) return (dq / 4 > usual ? dq / 4 : usual) / slot;
    return (rest < usual ? rest : usual) / slot;
  }
};

/// The logarithm of the number of parts: with groups of heads about 1024 items for each block that
/// runs on an SM, so that the last ones are short against the whole; else there are as many as
/// FlashAttention-2 has, and only very few are divided. A part is long against the addition of its
/// dk and dv, which takes up to 0.8 of the time of a tile of rows (half of it where two blocks share
/// an SM), and at most four parts wait for each other.
template <class C, class T>
int backward_part_bits(const AttentionParams<T>& p) {
  constexpr int kMostBits = C::kKeys < 64 ? 5 : 6, kLeastTiles = 8 / C::kBlocksPerSm;
  const int64_t tiles = int64_t{p.batch} * p.groups * divide_up(p.keys, C::kKeys);
  const int64_t visits = int64_t{p.heads / p.groups} * divide_up(p.queries, C::kRows);
  const int64_t wanted = p.heads > p.groups ? 1024 * C::kBlocksPerSm : tiles > 128 ? 0 : 512;
  const int64_t most = 4 * PartialBytes::of<C>(p).most_slots();
  int bits = 0;
  while (bits < kMostBits && tiles << bits < wanted && 2 << bits <= most &&
         visits >= int64_t{2 * kLeastTiles} << bits)
    ++bits;
  return bits;
}

template <class C, class T>
BackwardWork backward_work(const AttentionParams<T>& p, bool has_dbias) {
  BackwardWork w = {};
  const int64_t heads = int64_t{p.batch} * p.heads, key_heads = int64_t{p.batch} * p.groups;
  w.key_tiles = larger(divide_up(p.keys, C::kKeys), 1);
  w.row_tiles = divide_up(p.queries, C::kRows);
  w.chunks = divide_up(p.keys, kMaximaKeys);
  w.group_heads = p.heads / p.groups;
  // Where there are few key heads, an SM's neighbours run the same one anyway.
  const int together_bits = key_heads <= 32 ? 0 : w.key_tiles <= 8 ? 1 : 2;
  w.part_bits = backward_part_bits<C>(p), w.item_bits = together_bits + w.part_bits;
  w.together = 1 << together_bits, w.parts = 1 << w.part_bits;
  const PartialBytes partial = PartialBytes::of<C>(p);
  if (w.part_bits > 0)
    w.slots = static_cast<int>(partial.most_slots() < w.parts ? partial.most_slots() : w.parts);
  const auto take = [&](int64_t elements) {
    const int64_t at = w.size;
    w.size += (elements + 3) / 4 * 4;  // vectors of 16 bytes
    return at;
  };
  take(heads * w.row_tiles * C::kRows * 4);
  w.units_at = take(heads * w.row_tiles * C::kRows);
  w.maxima_at = take(key_heads * w.chunks * 2);
  w.steepest_at = take(has_dbias ? p.heads : 0);
  w.dq_at = take(partial.dq / 4);
  w.dbias_at = take(has_dbias ? int64_t{p.heads} * (int64_t{p.queries} + p.keys - 1) * 2 : 0);
  w.slots_at = take(w.slots * partial.slot / 4);
  w.turns_at = take(key_heads * w.key_tiles * w.slots);
  w.tickets_at = take(w.slots > 0 ? key_heads : 0);
  return w;
}

template <class C, class T>
BackwardSchedule backward_schedule(const AttentionParams<T>& p, bool has_dbias) {
  const BackwardWork w = backward_work<C>(p, has_dbias);
  const PartialBytes partial = PartialBytes::of<C>(p);
  const int64_t summed = partial.dq + w.slots * partial.slot;
  return {C::kRows, C::kKeys, C::kBlocksPerSm, w.together, w.parts, w.slots, summed, w.size * 4};
}

}  // namespace megalite::sm80
