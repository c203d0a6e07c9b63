// How attention's backward pass on sm_80 divides its work among blocks, and the workspace that it
// needs; both are functions of the shapes alone, and so are the bits of the gradients.
//
// Items: a block has one tile of keys of one key head, whole or a part of the pairs (head of the
//   group, tile of rows) that touch it: those whose number, 37 head + tile, has the part's residue
//   modulo a power of two. 37 spreads any range of tiles of any number of heads evenly over all of
//   them, so that parts are of about equal length for any mask; and as the numbers don't depend on
//   the mask, neither does it what is added to what.
// Parts: a tile is divided into `parts` where the tiles alone would leave SMs idle: few sequences and
//   key heads, or multi-query attention. The last `fine_tiles` of each key head are divided further:
//   each of their parts into 1/2, 1/4, ... of it, the last two alike. Blocks get shorter so towards
//   the end, and the GPU's SMs finish together whatever the mask is.
// Order: tiles of keys from the first on, since under a causal mask those are the longest; but only
//   `together` of a key head at a time, then of the next, so that the blocks that run at the same
//   time read the same Q_i and dO_i and add to the same dQ_i, which then are in L2. Then the halves of
//   all fine tiles, then their quarters, ...
// Sums: dq is summed over the tiles of keys, dbias over all items, with atomic additions of
//   integers (backward_units.cuh), whose result has no order. dk and dv of more than one part are
//   summed in slots: part p adds to slot p % slots, after the parts before it of the same slot, which
//   have started before it.
#pragma once

#include "cuda/attention/sm80/backward_traits.cuh"
#include "cuda/attention/sm80/backward_units.cuh"

namespace megalite::sm80 {

inline constexpr int64_t kMiB = 1 << 20;
inline constexpr int kHeadNumber = 37;    // see above
inline constexpr int kMostModulus = 256;  // see packed_item

/// A block's place, the parts of the work, and the workspace's layout in fp32 elements:
///   states   [B, N, row tiles, 4, kRows]: log2(e) lse, delta, start and end of each row
///   units    [B, N, row tiles, kRows]: what a gradient of a row's q is multiplied by, see there
///   maxima   [B, G, chunks, 2]: the largest |k| and length of v
///   steepest [N]: the largest score gradient that there may be
///   dq       [B, N, row tiles, kRows * kDim] int32: in the order of the threads' accumulators
///   dbias    [N, Sq + Sk - 1] int64
///   slots    [slots, B, G, divided tiles, 2, kKeys * kDim]: dk and dv, in the same order
///   turns    [B, G, divided tiles, slots] int32: parts that have been added to a slot
///   tickets  [B, G] int32: items that have been started
struct BackwardWork {
  int key_tiles, row_tiles, chunks, group_heads;
  int parts, part_bits;          // of a tile, and its logarithm
  int fine_tiles, levels;        // tiles that are divided further, and how often
  int first_divided, slots;      // the first tile with slots; none: all are whole
  int items;                     // of a key head
  int together_bits, item_bits;  // logarithms of the tiles and items that are together
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
  /// The memory for slots: 64 MiB, but with a dq of at most 32 heads of 128 at 8192 rows no more than
  /// 0.15 GiB in all, and with a larger one at least a quarter of it.
  int64_t most() const {
    const int64_t usual = 64 * kMiB, rest = 153 * kMiB - dq;
    if (dq > 128 * kMiB) return dq / 4 > usual ? dq / 4 : usual;
    return rest < usual ? rest : usual;
  }
};

/// The logarithm of the number of parts: as many as give 256 items with groups of heads for each block
/// that runs on an SM; else there are as many as FlashAttention-2 has, and only very few are divided.
/// A part is long against the addition of its dk and dv, which takes up to 0.8 of the time of a tile
/// of rows (half of it where two blocks share an SM), and at most two parts wait for each other.
template <class C, class T>
int backward_part_bits(const AttentionParams<T>& p) {
  constexpr int kMostBits = 6, kLeastTiles = 8 / C::kBlocksPerSm;
  const int64_t tiles = int64_t{p.batch} * p.groups * divide_up(p.keys, C::kKeys);
  const int64_t visits = int64_t{p.heads / p.groups} * divide_up(p.queries, C::kRows);
  const int64_t wanted = p.heads > p.groups ? 256 * C::kBlocksPerSm : tiles > 128 ? 0 : 512;
  const PartialBytes partial = PartialBytes::of<C>(p);
  const int64_t most = 2 * (partial.most() / partial.slot);
  int bits = 0;
  while (bits < kMostBits && tiles << bits < wanted && 2 << bits <= most &&
         visits >= int64_t{2 * kLeastTiles} << bits)
    ++bits;
  return bits;
}

/// Choose the tiles that are divided further and their slots: as much work as 128 blocks an SM's place
/// would have in whole parts, unless there are so many items that the last ones are short anyway.
template <class C, class T>
void divide_last_tiles(const AttentionParams<T>& p, BackwardWork& w) {
  constexpr int kMostLevels = 4, kLeastTiles = 16 / C::kBlocksPerSm;
  const PartialBytes partial = PartialBytes::of<C>(p);
  const int64_t key_heads = int64_t{p.batch} * p.groups, most = partial.most();
  const int64_t of_tile = partial.slot / w.key_tiles;  // of all key heads
  const int64_t visits = int64_t{w.group_heads} * w.row_tiles;
  int64_t fine = divide_up(128 * C::kBlocksPerSm, key_heads * w.parts);
  if (w.parts == 1 && fine > most / of_tile) fine = most / of_tile;
  if (fine > w.key_tiles) fine = w.key_tiles;
  if (key_heads * w.key_tiles >= 2048 * C::kBlocksPerSm) fine = 0;
  while (w.levels < kMostLevels && fine > 0 && w.parts << (w.levels + 1) <= kMostModulus &&
         visits >= int64_t{2 * kLeastTiles} * w.parts << w.levels)
    ++w.levels;
  w.fine_tiles = w.levels > 0 ? static_cast<int>(fine) : 0;
  const int64_t divided = w.parts > 1 ? w.key_tiles : w.fine_tiles;
  w.first_divided = w.key_tiles - static_cast<int>(divided);
  if (divided > 0) {
    // The parts of later levels start when earlier ones have ended: two levels of slots do.
    const int64_t wanted = int64_t{w.parts} * (w.levels > 0 ? 2 : 1);
    const int64_t fitting = most / (of_tile * divided);
    w.slots = static_cast<int>(wanted < fitting ? wanted : fitting);
  }
  w.items = (w.key_tiles + w.levels * w.fine_tiles) << w.part_bits;
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
  w.together_bits = key_heads <= 32 ? 0 : w.key_tiles <= 8 ? 1 : 2;
  w.part_bits = backward_part_bits<C>(p), w.item_bits = w.together_bits + w.part_bits;
  w.parts = 1 << w.part_bits;
  divide_last_tiles<C>(p, w);
  const PartialBytes partial = PartialBytes::of<C>(p);
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
  const int64_t divided = w.key_tiles - w.first_divided;
  w.slots_at = take(w.slots * (partial.slot / w.key_tiles) * divided / 4);
  w.turns_at = take(key_heads * divided * w.slots);
  w.tickets_at = take(w.slots > 0 ? key_heads : 0);
  return w;
}

template <class C, class T>
BackwardSchedule backward_schedule(const AttentionParams<T>& p, bool has_dbias) {
  const BackwardWork w = backward_work<C>(p, has_dbias);
  const PartialBytes partial = PartialBytes::of<C>(p);
  const int64_t slots = w.slots * (partial.slot / w.key_tiles) * (w.key_tiles - w.first_divided);
  return {C::kRows,     C::kKeys, C::kBlocksPerSm, 1 << w.together_bits, w.parts,
          w.fine_tiles, w.levels, w.slots,         partial.dq + slots,   w.size * 4};
}

}  // namespace megalite::sm80
