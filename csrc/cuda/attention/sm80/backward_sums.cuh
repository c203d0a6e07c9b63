// The kernels before and after attention's backward kernel on sm_80: the state of each row that it
// needs, and the reduction of its splits, in a fixed order.
//
// Mapping: row_states: 8 lanes per row; sum_query_gradient: a block per tile of rows, where a
//   thread reads the accumulators that the same thread of the backward kernel wrote;
//   sum_bias_gradient: a thread per distance.
// Cost: reads dout and out once, the partial dq once; writes dq once. Bound by memory.
// Tested by: tests/kernels/test_attention.py, on the emulator.
#pragma once

#include "cuda/attention/sm80/backward_traits.cuh"
#include "cuda/attention/sm80/tensor_tiles.cuh"

namespace megalite::sm80 {

inline constexpr int kStateThreads = 128, kLanesOfRow = 8;

/// A lane's part of the sum over H of dout * out, of one row.
template <class T>
MEGALITE_DEVICE float row_delta(const AttentionParams<T>& p, const AttentionGradients<T>& g,
                                int row) {
  const int64_t head = block_y(), batch = block_z();
  const int64_t of_out = ((batch * p.queries + row) * p.heads + head) * p.head_dim;
  const int64_t of_dout =
      batch * g.dout_strides.batch + row * g.dout_strides.row + head * g.dout_strides.head;
  float delta = 0.0f;
  for (int h = lane() % kLanesOfRow * 8; h < p.head_dim; h += kLanesOfRow * 8) {
    const auto out = load_vec<8>(p.out, of_out + h);
    const auto dout = load_vec<8>(g.dout, of_dout + h);
    MEGALITE_UNROLL
    for (int i = 0; i < 8; ++i) delta = fmaf(to_float(out.v[i]), to_float(dout.v[i]), delta);
  }
  return delta;
}

/// Grid: rows, heads, sequences. A row that attends to nothing gets lse = inf, so that its P is 0.
template <class C>
MEGALITE_KERNEL(kStateThreads, 1)
void row_states(AttentionParams<typename C::T> p, AttentionGradients<typename C::T> g) {
  const int padded = divide_up(p.queries, C::kRows) * C::kRows;
  const int row = (block_x() * kStateThreads + thread_x()) / kLanesOfRow;
  const Interval keys = row_interval(p, block_z(), row);
  float delta = keys.is_empty() ? 0.0f : row_delta(p, g, row);
  for (int lanes = kLanesOfRow / 2; lanes > 0; lanes /= 2) delta += shfl_xor(delta, lanes);
  if (lane() % kLanesOfRow != 0 || row >= padded) return;
  const int64_t head = int64_t{block_z()} * p.heads + block_y();
  const float lse = keys.is_empty() ? kInfinity : p.lse.load(head * p.queries + row) * kLog2E;
  const int32_t state[4] = {static_cast<int32_t>(as_uint(lse)),
                            static_cast<int32_t>(as_uint(delta)), keys.start, keys.end};
  const int64_t at = (head * padded + row / C::kRows * C::kRows) * 4 + row % C::kRows;
  MEGALITE_UNROLL
  for (int i = 0; i < 4; ++i) g.scratch.template as<int32_t>().store(at + i * C::kRows, state[i]);
}

/// dq = scale * the sum of the splits. Grid: tiles of rows, heads, sequences.
template <class C>
MEGALITE_KERNEL(C::kThreads, 1)
void sum_query_gradient(AttentionParams<typename C::T> p, AttentionGradients<typename C::T> g) {
  using T = typename C::T;
  const auto scratch = BackwardScratch<C>::of(p, false);
  const int64_t head = int64_t{block_z()} * p.heads + block_y();
  const int64_t heads = int64_t{p.batch} * p.heads;
  const int row_warp = warp() % C::kRowWarps, column_warp = warp() / C::kRowWarps;
  for (int f = 0; f < C::kRowMTiles * C::kColumnTiles; ++f) {
    float sum[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    for (int split = 0; split < scratch.splits; ++split) {
      const int64_t tile = (split * heads + head) * scratch.row_tiles + block_x();
      const auto part = load_vec<4>(g.scratch, scratch.dq_at + tile * C::kRows * C::kDim +
                                                   (f * C::kThreads + thread_x()) * 4);
      MEGALITE_UNROLL
      for (int e = 0; e < 4; ++e) sum[e] += part.v[e];
    }
    const int m = row_warp * C::kRowMTiles + f / C::kColumnTiles;
    const int h = (column_warp * C::kColumnTiles + f % C::kColumnTiles) * 8 + lane() % 4 * 2;
    MEGALITE_UNROLL
    for (int half = 0; half < 2; ++half) {
      const int row = block_x() * C::kRows + m * 16 + half * 8 + lane() / 4;
      if (row >= p.queries || h >= p.head_dim) continue;
      const int64_t at =
          ((int64_t{block_z()} * p.queries + row) * p.heads + block_y()) * p.head_dim + h;
      g.dq.template as<uint32_t>().store(
          at / 2, pack2<T>(sum[half * 2] * p.scale, sum[half * 2 + 1] * p.scale));
    }
  }
}

/// dbias [N, distances] = the sum over sequences and splits. Grid: distances, heads.
template <class C>
MEGALITE_KERNEL(kStateThreads, 1)
void sum_bias_gradient(AttentionParams<typename C::T> p, AttentionGradients<typename C::T> g) {
  const auto scratch = BackwardScratch<C>::of(p, true);
  const int64_t distances = int64_t{p.queries} + p.keys - 1;
  const int64_t distance = int64_t{block_x()} * kStateThreads + thread_x(), head = block_y();
  if (distance >= distances) return;
  float sum = 0.0f;
  for (int64_t part = 0; part < int64_t{scratch.splits} * p.batch; ++part) {
    sum += g.scratch.load(scratch.dbias_at + (part * p.heads + head) * distances + distance);
  }
  g.dbias.store(head * distances + distance, sum);
}

}  // namespace megalite::sm80
