// The kernels before and after attention's backward kernel on sm_80: what it needs of each row and
// of the keys, and the sums of its blocks, as gradients in T.
//
// Mapping: key_maxima: a block per chunk of keys, 8 lanes per key; row_states: 8 lanes per row;
//   write_query_gradient: a block per tile of rows, where a thread reads the sums that the threads of
//   the backward kernel in its place added to; write_key_gradient: in the backward kernel's grid, a
//   block for dk and one for dv of a tile of keys; write_bias_gradient: a thread per distance.
// Cost: reads k, v, dout and out once; where more than one tile of keys touches a tile of rows,
//   clears the sums of its dq; reads the sums, 4 bytes an element, and writes dq once. Bound by
//   memory.
// Tested by: tests/kernels/test_attention.py, on the emulator.
#pragma once

#include "cuda/attention/sm80/backward_work.cuh"
#include "cuda/attention/sm80/tensor_tiles.cuh"

namespace megalite::sm80 {

inline constexpr int kStateThreads = 128, kLanesOfRow = 8;

/// Sum over the lanes of a row.
MEGALITE_DEVICE float row_sum(float x) {
  for (int lanes = kLanesOfRow / 2; lanes > 0; lanes /= 2) x += shfl_xor(x, lanes);
  return x;
}

/// The largest |k| and length of v of one key, as far as a lane has them; a key that no row attends
/// to counts as 0.
template <class T>
MEGALITE_DEVICE void measure_key(const AttentionParams<T>& p, int key, float& most_k,
                                 float& most_v) {
  const int group = block_y(), batch = block_z();
  float squares = 0.0f, magnitudes = 0.0f;
  if (is_key_used(p, batch, key)) {
    const int64_t of_k =
        batch * p.k_strides.batch + key * p.k_strides.row + group * p.k_strides.head;
    const int64_t of_v =
        batch * p.v_strides.batch + key * p.v_strides.row + group * p.v_strides.head;
    for (int h = lane() % kLanesOfRow * 8; h < p.head_dim; h += kLanesOfRow * 8) {
      const auto k = load_vec<8>(p.k, of_k + h), v = load_vec<8>(p.v, of_v + h);
      MEGALITE_UNROLL
      for (int i = 0; i < 8; ++i) {
        const float x = to_float(v.v[i]);
        most_k = larger_magnitude(most_k, to_float(k.v[i]));
        squares = fmaf(x, x, squares);
        magnitudes += as_float(magnitude_bits(x));
      }
    }
  }
  most_v = larger_magnitude(most_v, length(row_sum(squares), row_sum(magnitudes)));
}

/// Grid: chunks of kMaximaKeys keys, key heads, sequences. Also clears the counters of `w`.
template <class C>
MEGALITE_KERNEL(kStateThreads, 1)
void key_maxima(AttentionParams<typename C::T> p, AttentionGradients<typename C::T> g,
                BackwardWork w) {
  constexpr int kWarps = kStateThreads / kWarpSize;
  const int64_t key_heads = int64_t{p.batch} * p.groups;
  const int64_t place = int64_t{block_z()} * p.groups + block_y();
  const auto clear = [&](int64_t at, int64_t count) {
    const int64_t blocks = key_heads * w.chunks;
    for (int64_t i = (place * w.chunks + block_x()) * kStateThreads + thread_x(); i < count;
         i += blocks * kStateThreads)
      g.scratch.template as<int32_t>().store(at + i, 0);
  };
  if (g.dbias) clear(w.steepest_at, p.heads);
  clear(w.turns_at, key_heads * (w.key_tiles - w.first_divided) * w.slots);
  if (w.slots > 0) clear(w.tickets_at, key_heads);

  float most_k = 0.0f, most_v = 0.0f;
  for (int i = thread_x() / kLanesOfRow; i < kMaximaKeys; i += kStateThreads / kLanesOfRow)
    measure_key(p, block_x() * kMaximaKeys + i, most_k, most_v);
  most_k = warp_magnitude(most_k), most_v = warp_magnitude(most_v);
  const Shared<float> of_warps = shared_view<float>(0, 2 * kWarps);
  if (lane() == 0) store_vec(of_warps, warp() * 2, Vec<float, 2>{{most_k, most_v}});
  syncthreads();
  if (thread_x() > 0) return;
  for (int i = 1; i < kWarps; ++i) {
    const auto other = load_vec<2>(of_warps, i * 2);
    most_k = larger_magnitude(most_k, other.v[0]), most_v = larger_magnitude(most_v, other.v[1]);
  }
  store_vec(g.scratch, w.maxima_at + (place * w.chunks + block_x()) * 2,
            Vec<float, 2>{{most_k, most_v}});
}

/// The maxima of all chunks of a key head, for a whole warp: of |k| and of the lengths of v.
template <class T>
MEGALITE_DEVICE Vec<float, 2> key_head_maxima(const AttentionGradients<T>& g, const BackwardWork& w,
                                              int64_t key_head) {
  Vec<float, 2> most = {{0.0f, 0.0f}};
  for (int i = lane(); i < w.chunks; i += kWarpSize) {
    const auto of_chunk = load_vec<2>(g.scratch, w.maxima_at + (key_head * w.chunks + i) * 2);
    most.v[0] = larger_magnitude(most.v[0], of_chunk.v[0]);
    most.v[1] = larger_magnitude(most.v[1], of_chunk.v[1]);
  }
  return {{warp_magnitude(most.v[0]), warp_magnitude(most.v[1])}};
}

/// The sum over H of dout * out of one row, and a bound of the length of dout.
struct RowMeasure {
  float delta, length;
};
template <class T>
MEGALITE_DEVICE RowMeasure measure_row(const AttentionParams<T>& p, const AttentionGradients<T>& g,
                                       int row, bool is_used) {
  const int64_t head = block_y(), batch = block_z();
  const int64_t of_out = ((batch * p.queries + row) * p.heads + head) * p.head_dim;
  const int64_t of_dout =
      batch * g.dout_strides.batch + row * g.dout_strides.row + head * g.dout_strides.head;
  float delta = 0.0f, squares = 0.0f, magnitudes = 0.0f;
  for (int h = lane() % kLanesOfRow * 8; is_used && h < p.head_dim; h += kLanesOfRow * 8) {
    const auto out = load_vec<8>(p.out, of_out + h);
    const auto dout = load_vec<8>(g.dout, of_dout + h);
    MEGALITE_UNROLL
    for (int i = 0; i < 8; ++i) {
      const float x = to_float(dout.v[i]);
      delta = fmaf(to_float(out.v[i]), x, delta);
      squares = fmaf(x, x, squares);
      magnitudes += as_float(magnitude_bits(x));
    }
  }
  return {row_sum(delta), length(row_sum(squares), row_sum(magnitudes))};
}

/// The tiles of keys that touch a tile of rows.
template <class C>
MEGALITE_DEVICE int count_of_key_tiles(const AttentionParams<typename C::T>& p, int batch,
                                       int row_tile) {
  const Range tiles =
      row_bounds<C::kRows>(p, batch, row_tile * C::kRows).template touched_tiles<C::kKeys>();
  return tiles.last - tiles.first;
}

/// Clear the sums of a row's dq if more than one block adds to them; the rows of a tile that attends
/// to nothing have dq = 0.
template <class C>
MEGALITE_DEVICE void prepare_query_gradient(const AttentionParams<typename C::T>& p,
                                            const AttentionGradients<typename C::T>& g,
                                            const BackwardWork& w, int row) {
  const int64_t head = int64_t{block_z()} * p.heads + block_y();
  const int tile = row / C::kRows, of_lane = lane() % kLanesOfRow;
  const int key_tiles = count_of_key_tiles<C>(p, block_z(), tile);
  if (key_tiles > 1) {
    const int64_t at = w.dq_at + (head * w.row_tiles + tile) * C::kRows * C::kDim;
    for (int i = of_lane * 4; i < C::kDim; i += kLanesOfRow * 4)
      store_vec(g.scratch.template as<int32_t>(), at + row % C::kRows * C::kDim + i,
                Vec<int32_t, 4>{});
  } else if (key_tiles < 1 && row < p.queries) {
    const int64_t at = ((int64_t{block_z()} * p.queries + row) * p.heads + block_y()) * p.head_dim;
    for (int h = of_lane * 8; h < p.head_dim; h += kLanesOfRow * 8)
      store_vec(g.dq.template as<uint32_t>(), (at + h) / 2, Vec<uint32_t, 4>{});
  }
}

/// Grid: rows, heads, sequences. A row that attends to nothing gets lse = inf, so that its P is 0.
template <class C>
MEGALITE_KERNEL(kStateThreads, 1)
void row_states(AttentionParams<typename C::T> p, AttentionGradients<typename C::T> g,
                BackwardWork w) {
  const int row = (block_x() * kStateThreads + thread_x()) / kLanesOfRow;
  const int64_t head = int64_t{block_z()} * p.heads + block_y();
  const int group = block_y() / w.group_heads;
  const Interval keys = row_interval(p, block_z(), row);
  const bool is_used = !keys.is_empty();
  const RowMeasure of_row = measure_row(p, g, row, is_used);
  const auto of_keys = key_head_maxima(g, w, int64_t{block_z()} * p.groups + group);
  const float lse = is_used ? p.lse.load(head * p.queries + row) * kLog2E : kInfinity;
  // Of a row's dS / P. Scores that are not numbers, as of a q that isn't one, show in lse.
  float steepest =
      of_row.length * of_keys.v[1] * p.dropout.scale + as_float(magnitude_bits(of_row.delta));
  if (!is_used) steepest = 0.0f;
  if (is_used && !(magnitude_bits(lse) < as_uint(kInfinity))) steepest = kNan;
  prepare_query_gradient<C>(p, g, w, row);
  if (g.dbias) {
    const float of_warp = warp_magnitude(steepest);
    if (lane() == 0)
      atomic_max(g.scratch.template as<int32_t>(), w.steepest_at + block_y(),
                 static_cast<int32_t>(as_uint(of_warp)));
    const int64_t distances = int64_t{p.queries} + p.keys - 1;
    const auto dbias = g.scratch.at(w.dbias_at).template as<int64_t>();
    for (int64_t i = int64_t{block_x()} * kStateThreads + thread_x();
         block_z() == 0 && i < distances; i += int64_t{grid_x()} * kStateThreads)
      dbias.store(block_y() * distances + i, 0);
  }
  if (lane() % kLanesOfRow != 0) return;
  const int32_t state[4] = {static_cast<int32_t>(as_uint(lse)),
                            static_cast<int32_t>(as_uint(of_row.delta)), keys.start, keys.end};
  const int64_t of_tile = (head * w.row_tiles + row / C::kRows) * C::kRows;
  MEGALITE_UNROLL
  for (int i = 0; i < 4; ++i) {
    g.scratch.template as<int32_t>().store(of_tile * 4 + i * C::kRows + row % C::kRows, state[i]);
  }
  g.scratch.store(w.units_at + of_tile + row % C::kRows,
                  unit_of(steepest * of_keys.v[0], kRowBits));
}

/// dq from its sums, where a tile of rows has any. Grid: tiles of rows, heads, sequences.
template <class C>
MEGALITE_KERNEL(C::kThreads, 1)
void write_query_gradient(AttentionParams<typename C::T> p, AttentionGradients<typename C::T> g,
                          BackwardWork w) {
  using T = typename C::T;
  if (count_of_key_tiles<C>(p, block_z(), block_x()) < 1) return;
  const int64_t tile = (int64_t{block_z()} * p.heads + block_y()) * w.row_tiles + block_x();
  const auto sums = g.scratch.at(w.dq_at + tile * C::kRows * C::kDim).template as<int32_t>();
  const int row_warp = warp() % C::kRowWarps, column_warp = warp() / C::kRowWarps;
  for (int f = 0; f < C::kRowMTiles * C::kColumnTiles; ++f) {
    const int m = row_warp * C::kRowMTiles + f / C::kColumnTiles;
    const int h = (column_warp * C::kColumnTiles + f % C::kColumnTiles) * 8 + lane() % 4 * 2;
    MEGALITE_UNROLL
    for (int half = 0; half < 2; ++half) {
      const int in_tile = m * 16 + half * 8 + lane() / 4, row = block_x() * C::kRows + in_tile;
      if (row >= p.queries || h >= p.head_dim) continue;
      const float unit = g.scratch.load(w.units_at + tile * C::kRows + in_tile);
      const auto value = [&](int e) {
        const int32_t sum = sums.load((f * 4 + half * 2 + e) * C::kThreads + thread_x());
        return static_cast<float>(sum) * inverse_unit(unit) * p.scale;
      };
      const int64_t at =
          ((int64_t{block_z()} * p.queries + row) * p.heads + block_y()) * p.head_dim + h;
      g.dq.template as<uint32_t>().store(at / 2, pack2<T>(value(0), value(1)));
    }
  }
}

/// dbias [N, distances]. Grid: distances, heads.
template <class C>
MEGALITE_KERNEL(kStateThreads, 1)
void write_bias_gradient(AttentionParams<typename C::T> p, AttentionGradients<typename C::T> g,
                         BackwardWork w) {
  const int64_t distances = int64_t{p.queries} + p.keys - 1;
  const int64_t distance = int64_t{block_x()} * kStateThreads + thread_x(), head = block_y();
  if (distance >= distances) return;
  const float unit = unit_of(g.scratch.load(w.steepest_at + head), kDistanceBits);
  const auto sums = g.scratch.at(w.dbias_at).template as<int64_t>();
  const int64_t at = head * distances + distance;
  g.dbias.store(at, static_cast<float>(sums.load(at)) * inverse_unit(unit));
}

}  // namespace megalite::sm80
