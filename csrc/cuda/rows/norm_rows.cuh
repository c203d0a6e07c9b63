// What the kernels of norms share: the threads of a row, what each holds of it, and sums over them.
#pragma once

#include "cuda/rows/params.cuh"
#include "cuda/rows/vectors.cuh"

namespace megalite {

inline constexpr int kMostLanes = 512;        // threads a row
inline constexpr int kShortRowThreads = 256;  // of a block of rows that are a warp's or less
inline constexpr int kMostWarps = kMostLanes / kWarpSize;

inline constexpr int kMostHeld = 16;  // elements of a row that a thread's registers hold

/// The place of a thread among those of its row, and of the row in its block.
struct RowThread {
  int lanes, index, row_in_block, rows_per_block;
};
MEGALITE_DEVICE RowThread row_thread(const NormRows& rows) {
  return {rows.lanes, thread_x() % rows.lanes, thread_x() / rows.lanes, block_dim_x() / rows.lanes};
}

/// E elements of a row: vectors of 16 bytes, the threads of the row side by side.
template <class T, int E>
struct RowPart {
  static constexpr int N = 16 / static_cast<int>(sizeof(T)), K = E / N;
  Packed<T> vectors[K];

  MEGALITE_DEVICE static int column(const RowThread& thread, int k) {
    return (thread.index + k * thread.lanes) * N;
  }
  /// Read the thread's part of [0, width); zeros beyond it, and everywhere unless `is_there`.
  MEGALITE_DEVICE void load(const RowThread& thread, Global<const T> row, int width,
                            bool is_there) {
    MEGALITE_UNROLL
    for (int k = 0; k < K; ++k) {
      const int at = column(thread, k);
      const bool is_in = is_there && at < width;
      vectors[k].set(is_in ? load_vec<N>(row, at) : Vec<T, N>{});
    }
  }
};

/// Sums of M values over the threads of each row, in a fixed order, on all of them. All threads of
/// the block call it; two calls in a row pass different `turn`s, 0 or 1.
template <int M>
MEGALITE_DEVICE void row_sums(float (&values)[M], int lanes, int turn) {
  MEGALITE_UNROLL
  for (int i = 0; i < M; ++i) {
    for (int step = (lanes < kWarpSize ? lanes : kWarpSize) / 2; step > 0; step /= 2) {
      values[i] += shfl_xor(values[i], step);
    }
  }
  if (lanes <= kWarpSize) return;
  const Shared<float> parts = shared_view<float>(
      turn * M * kMostWarps * static_cast<int>(sizeof(float)), M * kMostWarps);  // [M, warps]
  MEGALITE_UNROLL
  for (int i = 0; i < M; ++i) {
    if (lane() == i) parts.store(i * kMostWarps + warp(), values[i]);
  }
  syncthreads();
  MEGALITE_UNROLL
  for (int i = 0; i < M; ++i) {
    values[i] = 0.0f;
    for (int w = 0; w < lanes / kWarpSize; ++w) values[i] += parts.load(i * kMostWarps + w);
  }
}
/// Shared memory of `row_sums`, in bytes.
template <int M>
constexpr int kRowSumBytes = 2 * M * kMostWarps * static_cast<int>(sizeof(float));

MEGALITE_DEVICE float row_sum(float value, int lanes, int turn) {
  float values[1] = {value};
  row_sums(values, lanes, turn);
  return values[0];
}

/// How a thread has its part of a row: E elements in registers, or, where E is 0, it reads them
/// again; N elements an access.
template <int E, int N>
struct RowAccess {
  static constexpr int held = E, vector = N;
};
template <class T, class Work>
void with_access(const NormRows& rows, const Work& work) {
  constexpr int N = 16 / static_cast<int>(sizeof(T));
  if (!rows.has_vectors) return work(RowAccess<0, 1>{});
  const int each = (rows.width + rows.lanes - 1) / rows.lanes;
  if (each <= 8) return work(RowAccess<8, N>{});
  if (each <= kMostHeld) return work(RowAccess<kMostHeld, N>{});
  work(RowAccess<0, N>{});
}

/// Threads of a block.
inline uint32_t norm_block(const NormRows& rows) {
  return rows.lanes > kWarpSize ? rows.lanes : kShortRowThreads;
}

}  // namespace megalite
