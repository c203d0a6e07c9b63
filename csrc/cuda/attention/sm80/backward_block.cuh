// A block of attention's backward kernel on sm_80: the mapping of threads, the tiles in shared
// memory, the copies into them, and the iteration over tiles of query rows.
#pragma once

#include "cuda/attention/sm80/backward_work.cuh"
#include "cuda/attention/sm80/tensor_tiles.cuh"

namespace megalite::sm80 {

template <class C>
using WarpScores = float[C::kMTiles][C::kNTiles][4];  // of a warp [32 keys, kQueries]
template <class C>
using Packed = uint32_t[C::kMTiles][C::kNTiles / 2][4];  // in 16 bits, as operand A
template <class C>
using Rows = SharedTile<typename C::T, C::kDim>;
template <class C>
using BlockScores = SharedTile<typename C::T, C::kRows>;  // [kKeys, kRows]

/// A tile of query rows of one head, packed into two registers; head -1 means none.
struct RowTile {
  int head, packed;  // tile * 4 + stage * 2 + is_full

  MEGALITE_DEVICE bool exists() const { return head >= 0; }
  MEGALITE_DEVICE int tile() const { return packed >> 2; }
  /// The buffer that holds its rows.
  MEGALITE_DEVICE int stage() const { return packed >> 1 & 1; }
  /// Whether every row attends to all keys of the block's tile.
  MEGALITE_DEVICE bool is_full() const { return packed & 1; }
};

template <class C>
struct BackwardBlock {
  using T = typename C::T;

  const AttentionParams<T>& p;
  const AttentionGradients<T>& g;
  const BackwardWork& w;
  int thread, item;  // in one register: packed_item

  MEGALITE_DEVICE static int batch() { return opaque(block_y()); }
  MEGALITE_DEVICE int group() const { return opaque(block_x()) >> opaque(w.item_bits); }
  MEGALITE_DEVICE int first_key() const { return (item >> 12) * C::kKeys; }
  /// The part's number among those of its tile, in their order.
  MEGALITE_DEVICE int part() const {
    const int residue = item >> 4 & 255, halvings = (item & 15) - w.part_bits;
    const int level = residue >> w.part_bits > 0 ? halvings - 1 : halvings;
    return (level << w.part_bits) + (residue & (w.parts - 1));
  }
  MEGALITE_DEVICE int lane() const { return thread % kWarpSize; }
  MEGALITE_DEVICE int key_warp() const { return thread / kWarpSize % C::kKeyWarps; }
  MEGALITE_DEVICE int query_warp() const { return thread / kWarpSize / C::kKeyWarps; }
  MEGALITE_DEVICE int warp_key() const { return key_warp() * 32; }
  MEGALITE_DEVICE int warp_vector() const { return query_warp() * C::kDTiles; }
  /// The key of values [m][.][2 * half + ...] and the row, in its tile, of [.][n][... + e].
  MEGALITE_DEVICE int key(int m, int half) const {
    return first_key() + warp_key() + m * 16 + half * 8 + lane() / 4;
  }
  MEGALITE_DEVICE int query(int chunk, int n, int e) const {
    return first_query(chunk) + n * 8 + lane() % 4 * 2 + e;
  }
  MEGALITE_DEVICE static int first_row(const RowTile& t) { return t.tile() * C::kRows; }
  MEGALITE_DEVICE int first_query(int chunk) const {
    return (query_warp() * C::kChunks + chunk) * C::kQueries;
  }

  template <class Tile>
  MEGALITE_DEVICE Tile tile_at(int byte, int bytes) const {
    return {shared_view<T>(byte, bytes / 2), thread};
  }
  MEGALITE_DEVICE Rows<C> k_tile() const { return tile_at<Rows<C>>(0, C::kKeyBytes); }
  MEGALITE_DEVICE Rows<C> v_tile() const { return tile_at<Rows<C>>(C::kVAt, C::kKeyBytes); }
  MEGALITE_DEVICE Rows<C> q_tile(int stage) const {
    return tile_at<Rows<C>>(C::kQAt + stage * C::kRowBytes, C::kRowBytes);
  }
  MEGALITE_DEVICE Rows<C> dout_tile(int stage) const {
    return tile_at<Rows<C>>(C::kDoutAt + stage * C::kRowBytes, C::kRowBytes);
  }
  MEGALITE_DEVICE BlockScores<C> p_tile() const {
    return tile_at<BlockScores<C>>(C::kPAt, C::kScoreBytes);
  }
  MEGALITE_DEVICE BlockScores<C> ds_tile() const {
    return tile_at<BlockScores<C>>(C::kDsAt, C::kScoreBytes);
  }
  /// [4, kRows]: log2(e) lse, delta, start and end of each row.
  MEGALITE_DEVICE static Shared<int32_t> states() {
    return shared_view<int32_t>(C::kStatesAt, C::kRows * 4);
  }
  MEGALITE_DEVICE static Shared<float> diagonals() {
    return shared_view<float>(C::kDiagonalsAt, C::kDiagonalBytes / 4);
  }
  MEGALITE_DEVICE bool has_dbias() const { return C::kExtended && g.dbias; }

  /// The same block, with its addresses to be recomputed; see thread_x_anew.
  MEGALITE_DEVICE BackwardBlock fresh() const { return {p, g, w, thread_x_anew(), opaque(item)}; }

  // ---------------------------------------------------------------------------------------------
  // copies, and the iteration over tiles

  MEGALITE_DEVICE void start_keys(const Rows<C>& tile, Global<const T> x, const Strides& s) const {
    const uint32_t wanted = tile.template wanted_rows<C::kKeys, C::kThreads>(
        [&](int r) { return is_key_used(p, batch(), first_key() + r); });
    const int64_t at = batch() * s.batch + group() * s.head + first_key() * s.row;
    tile.template start_copy<C::kKeys, C::kThreads>(x.at(at), s.row, p.head_dim, wanted);
    cp_async_commit();
  }

  /// Copy Q_i and dO_i.
  MEGALITE_DEVICE void start_rows(const RowTile& t) const {
    if (!t.exists()) return;
    const Rows<C> q = q_tile(t.stage()), dout = dout_tile(t.stage());
    const uint32_t wanted = q.template wanted_rows<C::kRows, C::kThreads>([&](int r) {
      const int row = first_row(t) + r;
      return t.is_full() ? row < p.queries : !row_interval(p, batch(), row).is_empty();
    });
    const auto start = [&](const Rows<C>& tile, Global<const T> x, const Strides& s) {
      const int64_t at = batch() * s.batch + t.head * s.head + first_row(t) * s.row;
      tile.template start_copy<C::kRows, C::kThreads>(x.at(at), s.row, p.head_dim, wanted);
    };
    start(q, p.q, p.q_strides);
    start(dout, g.dout, g.dout_strides);
    cp_async_commit();
  }

  MEGALITE_DEVICE void start_states(const RowTile& t) const {
    if (!t.exists()) return;
    const int padded = divide_up(p.queries, C::kRows) * C::kRows;
    const int64_t at = (int64_t{batch()} * p.heads + t.head) * padded + first_row(t);
    if (thread < C::kRows) {
      cp_async16(states(), thread * 4, g.scratch.template as<const int32_t>(), (at + thread) * 4,
                 true);
    }
    cp_async_commit();
  }

  /// The range of tiles of rows that may attend to the block's keys.
  MEGALITE_DEVICE Range touching_tiles() const {
    const Range rows = touching_rows<C::kKeys>(p, batch(), first_key());
    return {rows.first / C::kRows, divide_up(rows.last, C::kRows)};
  }

  MEGALITE_DEVICE RowTile first_tile() const {
    const Range tiles = touching_tiles();
    if (tiles.first >= tiles.last) return {-1, 0};
    const int head = group() * w.group_heads;
    return tile_from({head, first_of_part(0, tiles) * 4 + 2}, tiles);
  }

  /// The next tile of the block's part with a row that attends to one of the keys, over all heads of
  /// the group.
  MEGALITE_DEVICE RowTile tile_after(const RowTile& t) const {
    return tile_from({t.head, t.packed + modulus() * 4}, touching_tiles());
  }

  /// Of the numbers of the part's pairs; see backward_work.cuh.
  MEGALITE_DEVICE int modulus() const { return 1 << (item & 15); }
  /// The first tile of the block's part for a head of the group.
  MEGALITE_DEVICE int first_of_part(int head, const Range& tiles) const {
    const int number = kHeadNumber * head + tiles.first;
    return tiles.first + (((item >> 4) - number) & (modulus() - 1));
  }

  /// The tile, or the next one if no row of it attends to one of the keys; in the other buffer.
  MEGALITE_DEVICE RowTile tile_from(const RowTile& t, const Range& tiles) const {
    const int first_head = group() * opaque(w.group_heads);
    int head = t.head, tile = t.tile();
    for (;; tile += modulus()) {
      while (tile >= tiles.last) {
        if (++head >= first_head + opaque(w.group_heads)) return {-1, 0};
        tile = first_of_part(head - first_head, tiles);
      }
      const RowBounds bounds = row_bounds<C::kRows>(p, batch(), tile * C::kRows);
      if (!bounds.template touches<C::kKeys>(first_key())) continue;
      const int stage = C::kStages == 2 ? 1 - t.stage() : 0;
      return {head, tile * 4 + stage * 2 + bounds.template covers<C::kKeys>(first_key())};
    }
  }
};

}  // namespace megalite::sm80
