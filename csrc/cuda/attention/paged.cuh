// Attention of one query row a sequence over keys and values that stand in blocks (split-KV): the
// keys of a sequence are split over thread blocks, and a second kernel joins their parts.
//
// Shapes:    q [B, N, H]; k, v [blocks, G, R, H]; tables [B, T]; start, end [B]; bias [N, K] by
//            distance, its last that of a row's own key -> out [B, N, H].
// Requires:  contiguous tensors that begin at a multiple of 16 bytes; T is half, bfloat16 or float;
//            rows of H elements are whole vectors of 16 bytes, H up to 256.
// Mapping:   a thread block has kSplitKeys keys of a sequence and key head, and up to kPagedHeads
//            query heads that share them: each key and value is read once for these. L threads hold
//            a key's row in vectors of 16 bytes, so that a warp reads 32 / L keys at a time, and
//            kKeysAtOnce of them are under way. Sums of keys are added up between the threads that
//            hold the same columns, then between warps, through shared memory.
// Numerics:  fp32 inside; exponentials relative to the largest score so far, rescaled as it grows.
//            Which thread has a key, and the order of all sums, are functions of the key's number
//            in its sequence: no bit depends on other sequences, on which blocks a sequence has, on
//            K or on B.
// Cost:      reads 2 G H elements a key, once for kPagedHeads query heads; writes and reads H + 2
//            floats for each query head and kSplitKeys keys. An exponential a key and query head,
//            two where the largest score grows.
// Source:    Dao et al. 2023, "Flash-Decoding for long-context inference"; Kwon et al. 2023,
//            arXiv:2309.06180, for the blocks; Milakov & Gimelshein 2018, arXiv:1805.02867.
// Tested by: tests/kernels/test_generation.py.
#pragma once

#include "cuda/attention/params.cuh"
#include "cuda/rows/exponential.cuh"
#include "cuda/rows/vectors.cuh"

namespace megalite {

inline constexpr int kPagedThreads = 128;
inline constexpr int kPagedWarps = kPagedThreads / kWarpSize;
inline constexpr int kPagedHeads = 4;  // query heads at once: their sums fill the registers
inline constexpr int kKeysAtOnce = 2;  // of a thread: their loads hide each other's latency

MEGALITE_DEVICE float no_score() { return as_float(0xff800000u); }  // -inf

/// The factor of sums that are relative to `top` once they are to `largest`.
MEGALITE_DEVICE float rescaled(float top, float largest) {
  if (top == largest) return 1.0f;
  return exp_of(top - largest);
}

/// Sums over keys for one query head: E columns of the values, weighted by the exponentials.
template <int E>
struct PagedSums {
  float top, total, values[E];

  MEGALITE_DEVICE void merge(float other_top, float other_total, const float (&others)[E]) {
    const float largest = other_top > top ? other_top : top;
    const float own = rescaled(top, largest), other = rescaled(other_top, largest);
    top = largest;
    total = own * total + other * other_total;
    MEGALITE_UNROLL
    for (int e = 0; e < E; ++e) values[e] = own * values[e] + other * others[e];
  }
};

/// What a thread block works on.
struct PagedWork {
  int sequence, group, first_head, num_heads;
  int start, end;   // of the sequence
  int first, last;  // keys of the block
};

template <class T>
MEGALITE_DEVICE PagedWork paged_work(const PagedParams<T>& p) {
  const int sharing = p.heads / p.groups, runs = (sharing + kPagedHeads - 1) / kPagedHeads;
  PagedWork work;
  work.sequence = block_z(), work.group = block_y() / runs;
  const int skipped = block_y() % runs * kPagedHeads;
  work.first_head = work.group * sharing + skipped;
  work.num_heads = sharing - skipped < kPagedHeads ? sharing - skipped : kPagedHeads;
  work.start = p.start[work.sequence], work.end = p.end[work.sequence];
  const int64_t most = static_cast<int64_t>(p.table_size) * p.block_rows;
  if (work.start < 0 || work.start > work.end || work.end > p.most_keys || work.end > most) {
    refuse(
        "paged_attention start, end: 0 <= start <= end <= %lld keys in %lld rows of blocks must "
        "hold, came [%lld, %lld) in sequence %lld",
        static_cast<long long>(p.most_keys), static_cast<long long>(most),
        static_cast<long long>(work.start), static_cast<long long>(work.end),
        static_cast<long long>(work.sequence));
  }
  const int first = block_x() * kSplitKeys, last = first + kSplitKeys;
  work.first = first, work.last = last < work.end ? last : work.end;
  return work;
}

/// Where the row of a key stands in the pools.
template <class T>
MEGALITE_DEVICE int64_t paged_row(const PagedParams<T>& p, const PagedWork& work, int key) {
  const int64_t table = static_cast<int64_t>(work.sequence) * p.table_size;
  const int block = p.tables[table + key / p.block_rows];
  if (block < 0 || block >= p.num_blocks) {
    refuse("paged_attention tables: must be in [0, %lld), came %lld in sequence %lld",
           static_cast<long long>(p.num_blocks), static_cast<long long>(block),
           static_cast<long long>(work.sequence));
  }
  const int64_t head = static_cast<int64_t>(block) * p.groups + work.group;
  return (head * p.block_rows + key % p.block_rows) * p.head_dim;
}

/// A thread's columns of a row: K vectors of N elements, those of its L neighbours between them.
template <class T, int L, int K>
struct PagedRow {
  static constexpr int N = 16 / static_cast<int>(sizeof(T)), E = K * N;
  Vec<T, N> vectors[K];

  MEGALITE_DEVICE static int column(int k) { return (k * L + thread_x() % L) * N; }
  MEGALITE_DEVICE void load(Global<const T> rows, int64_t row, int width, bool is_there) {
    MEGALITE_UNROLL
    for (int k = 0; k < K; ++k) {
      const bool is_in = is_there && column(k) < width;
      vectors[k] = is_in ? load_vec<N>(rows, row + column(k)) : Vec<T, N>{};
    }
  }
  MEGALITE_DEVICE void widen(float (&values)[E]) const {
    MEGALITE_UNROLL
    for (int e = 0; e < E; ++e) values[e] = to_float(vectors[e / N].v[e % N]);
  }
};

/// Add the keys that this thread's neighbours have to the sums of each query head.
template <class T, int L, int K>
MEGALITE_DEVICE void paged_keys(const PagedParams<T>& p, const PagedWork& work,
                                PagedSums<PagedRow<T, L, K>::E> (&sums)[kPagedHeads]) {
  using Row = PagedRow<T, L, K>;
  constexpr int kNeighbours = kPagedThreads / L;
  float q[kPagedHeads][Row::E];
  MEGALITE_UNROLL
  for (int h = 0; h < kPagedHeads; ++h) {
    Row row;
    const int64_t head = static_cast<int64_t>(work.sequence) * p.heads + work.first_head + h;
    row.load(p.q, head * p.head_dim, p.head_dim, h < work.num_heads);
    row.widen(q[h]);
  }
  for (int base = work.first; base < work.last; base += kKeysAtOnce * kNeighbours) {
    Row keys[kKeysAtOnce], values[kKeysAtOnce];
    bool is_seen[kKeysAtOnce];
    MEGALITE_UNROLL
    for (int u = 0; u < kKeysAtOnce; ++u) {
      const int key = base + u * kNeighbours + thread_x() / L;
      is_seen[u] = key >= work.start && key < work.last;
      const int64_t row = is_seen[u] ? paged_row(p, work, key) : 0;
      keys[u].load(p.k, row, p.head_dim, is_seen[u]);
      values[u].load(p.v, row, p.head_dim, is_seen[u]);
    }
    MEGALITE_UNROLL
    for (int u = 0; u < kKeysAtOnce; ++u) {
      const int key = base + u * kNeighbours + thread_x() / L;
      float k[Row::E], v[Row::E];
      keys[u].widen(k), values[u].widen(v);
      MEGALITE_UNROLL
      for (int h = 0; h < kPagedHeads; ++h) {
        float score = 0.0f;
        MEGALITE_UNROLL
        for (int e = 0; e < Row::E; ++e) score = fmaf(q[h][e], k[e], score);
        MEGALITE_UNROLL
        for (int lanes = L / 2; lanes > 0; lanes /= 2) score += shfl_xor(score, lanes);
        if (!is_seen[u] || h >= work.num_heads) continue;
        score *= p.scale;
        if (p.bias) {
          const int64_t row = (work.first_head + h) * p.most_keys;
          score += p.bias[row + p.most_keys - work.end + key];
        }
        sums[h].merge(score, 1.0f, v);
      }
    }
  }
}

/// Add up the sums of a warp's keys, on all threads that have a column.
template <int L, int E>
MEGALITE_DEVICE void paged_warp_sum(PagedSums<E>& sums) {
  MEGALITE_UNROLL
  for (int lanes = L; lanes < kWarpSize; lanes *= 2) {
    float others[E];
    MEGALITE_UNROLL
    for (int e = 0; e < E; ++e) others[e] = shfl_xor(sums.values[e], lanes);
    const float top = shfl_xor(sums.top, lanes), total = shfl_xor(sums.total, lanes);
    sums.merge(top, total, others);
  }
}

template <class T, int L, int K>
MEGALITE_KERNEL(kPagedThreads, 3)
void paged_split_kernel(PagedParams<T> p) {
  using Row = PagedRow<T, L, K>;
  constexpr int E = Row::E, kColumns = L * E, kFloats = kColumns + 2;  // of a warp and head
  const PagedWork work = paged_work(p);
  if (work.last <= work.first || work.last <= work.start) return;  // which the other kernel knows
  PagedSums<E> sums[kPagedHeads];
  MEGALITE_UNROLL
  for (int h = 0; h < kPagedHeads; ++h) {
    sums[h].top = no_score(), sums[h].total = 0.0f;
    MEGALITE_UNROLL
    for (int e = 0; e < E; ++e) sums[h].values[e] = 0.0f;
  }
  paged_keys<T, L, K>(p, work, sums);
  const Shared<float> parts =
      shared_view<float>(0, kPagedWarps * kPagedHeads * kFloats);  // [warps, heads, columns + 2]
  MEGALITE_UNROLL
  for (int h = 0; h < kPagedHeads; ++h) {
    paged_warp_sum<L>(sums[h]);
    if (lane() >= L) continue;
    const Shared<float> part = parts.at((warp() * kPagedHeads + h) * kFloats);
    MEGALITE_UNROLL
    for (int e = 0; e < E; ++e) part.store(Row::column(e / Row::N) + e % Row::N, sums[h].values[e]);
    if (lane() == 0) part.store(kColumns, sums[h].top), part.store(kColumns + 1, sums[h].total);
  }
  syncthreads();
  for (int i = thread_x(); i < work.num_heads * p.head_dim; i += kPagedThreads) {
    const int h = i / p.head_dim, column = i % p.head_dim;
    PagedSums<1> sum = {no_score(), 0.0f, {0.0f}};
    for (int w = 0; w < kPagedWarps; ++w) {
      const Shared<float> part = parts.at((w * kPagedHeads + h) * kFloats);
      const float value[1] = {part.load(column)};
      sum.merge(part.load(kColumns), part.load(kColumns + 1), value);
    }
    const int64_t rows = static_cast<int64_t>(block_x()) * p.batch + work.sequence;
    const int64_t row = rows * p.heads + work.first_head + h;
    p.sums.store(row * p.head_dim + column, sum.values[0]);
    if (column == 0) p.tops.store(2 * row, sum.top), p.tops.store(2 * row + 1, sum.total);
  }
}

/// Join the parts of a query head in the order of their keys.
template <class T>
MEGALITE_KERNEL(kPagedThreads, 8)
void paged_join_kernel(PagedParams<T> p) {
  const int head = block_x(), sequence = block_y();
  const int start = p.start[sequence], end = p.end[sequence];
  const int first = start / kSplitKeys;
  const int last = start < end ? (end + kSplitKeys - 1) / kSplitKeys : first;
  for (int column = thread_x(); column < p.head_dim; column += kPagedThreads) {
    PagedSums<1> sum = {no_score(), 0.0f, {0.0f}};
    for (int split = first; split < last; ++split) {
      const int64_t rows = static_cast<int64_t>(split) * p.batch + sequence;
      const int64_t row = rows * p.heads + head;
      const float value[1] = {p.sums.load(row * p.head_dim + column)};
      sum.merge(p.tops.load(2 * row), p.tops.load(2 * row + 1), value);
    }
    const float out = first < last ? sum.values[0] / sum.total : 0.0f;
    const int64_t row = static_cast<int64_t>(sequence) * p.heads + head;
    p.out.store(row * p.head_dim + column, from_float<T>(out));
  }
}

template <class T, int L, int K>
void launch_paged_split(const PagedParams<T>& p, Stream stream) {
  constexpr int kFloats = L * PagedRow<T, L, K>::E + 2;
  const int runs = (p.heads / p.groups + kPagedHeads - 1) / kPagedHeads;
  const Dim3 grid = {static_cast<uint32_t>(p.num_splits), static_cast<uint32_t>(p.groups * runs),
                     static_cast<uint32_t>(p.batch)};
  constexpr int kShared = kPagedWarps * kPagedHeads * kFloats * static_cast<int>(sizeof(float));
  launch(LaunchConfig{"paged_attention", grid, {kPagedThreads}, kShared, stream},
         paged_split_kernel<T, L, K>, p);
}

/// The kernel for rows of so many vectors of 16 bytes.
template <class T>
void launch_paged_splits(const PagedParams<T>& p, int vectors, Stream stream) {
  if (vectors <= 4) {
    launch_paged_split<T, 4, 1>(p, stream);
  } else if (vectors <= 8) {
    launch_paged_split<T, 8, 1>(p, stream);
  } else if (vectors <= 16) {
    launch_paged_split<T, 16, 1>(p, stream);
  } else if (vectors <= 32) {
    launch_paged_split<T, 32, 1>(p, stream);
  } else if constexpr (sizeof(T) == 4) {
    launch_paged_split<T, 32, 2>(p, stream);
  }
}

template <class T>
void paged_attention(const PagedParams<T>& p, Stream stream) {
  if (p.batch == 0) return;
  const int vectors = p.head_dim / (16 / static_cast<int>(sizeof(T)));
  if (p.num_splits > 0) launch_paged_splits(p, vectors, stream);
  const Dim3 grid = {static_cast<uint32_t>(p.heads), static_cast<uint32_t>(p.batch)};
  launch(LaunchConfig{"paged_attention_join", grid, {kPagedThreads}, 0, stream},
         paged_join_kernel<T>, p);
}

}  // namespace megalite
