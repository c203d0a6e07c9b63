// Warp products of masked attention on sm_70: mma.m8n8k4 without ldmatrix, S to P in registers.
//
// Mapping: the four quadpairs of a warp (lanes 4i + 8j + {0..3, 16..19}) form a 2 x 2 grid: i
//   selects 8 of 16 rows, j 8 of 16 columns, so one mma computes a 16 x 16 tile of C, over k = 4; a
//   lane holds 8 of its elements, a fragment. Four quadpairs stacked along M (32 x 8 per mma) would
//   read the same columns of B four times: half a 128-bit shared load per mma, which is 4 cycles of
//   a pipe that the 4 sub-cores share, and would saturate it at the tensor cores' peak. 2 x 2 with
//   two tiles along M needs a quarter of a load.
//   A, by rows:   lane holds row (lane & 7) + (lane & 16)/2, 4 of k.
//   B, by columns: lane holds column (lane & 3) + (lane & 16)/4 + (lane & 8), 4 of k.
//   B, by rows:   lane holds k = lane & 3, 4 columns.
//   C: element e has row (lane & 1) + (e & 2) + (lane & 4) + (lane & 16)/2,
//                column (e & 1) + (lane & 2) + (e & 4) + (lane & 8).
//   So a row of C is spread over lanes that differ in bits 1 and 3.
// C to A: a lane holds half of its A row of 8 columns; lane ^ 2 holds the rest. Two shuffles (and
//   four for the 8 columns of the other j) turn S into P. The order of columns along k is arbitrary
//   as long as B is read in the same order, so columns {0, 1, 4, 5} are one step of four and {2, 3,
//   6, 7} the next, and each j begins with its own 8.
// Shared tiles are [rows][D + 8] halves: a row is an odd number of 16-byte vectors, so the eight
//   lanes of a quarter warp, which read 4 or 8 different rows, have no bank conflict.
// Source: PTX ISA, "Matrix fragments for mma.m8n8k4"; the shuffles are those of llama.cpp, mma.cuh.
// Tested by: tests/kernels/test_attention.py on simt.
#pragma once

#include "cuda/attention/tiles.cuh"

namespace megalite::sm70 {

constexpr int kMmaTile = 16;  // rows and columns of C that one mma of the warp computes

MEGALITE_DEVICE int a_row() { return (lane() & 7) + (lane() & 16) / 2; }
MEGALITE_DEVICE int b_column() { return (lane() & 3) + (lane() & 16) / 4 + (lane() & 8); }
MEGALITE_DEVICE int c_row(int e) {
  return (lane() & 1) + (e & 2) + (lane() & 4) + (lane() & 16) / 2;
}
MEGALITE_DEVICE int c_column(int e) { return (e & 1) + (lane() & 2) + (e & 4) + (lane() & 8); }

/// A tile of halves in shared memory, [rows][D + 8], as 32-bit words of two.
template <int D>
struct Tile {
  static constexpr int kStride = D / 2 + 4;  // words per row
  static constexpr int bytes(int rows) { return rows * kStride * 4; }
  Shared<uint32_t> words;
  static MEGALITE_DEVICE Tile at(int byte_offset, int rows) {
    return {shared_view<uint32_t>(byte_offset, rows * kStride)};
  }
  MEGALITE_DEVICE Tile from_row(int row) const { return {words.at(row * kStride)}; }
  /// 8 halves of a row, from column 8 * chunk on.
  MEGALITE_DEVICE Vec<uint32_t, 4> load(int row, int chunk) const {
    return load_vec<4>(words, row * kStride + chunk * 4);
  }
  MEGALITE_DEVICE void store(int row, int chunk, const Vec<uint32_t, 4>& value) const {
    store_vec(words, row * kStride + chunk * 4, value);
  }
};

/// The rows of one head of one sequence in global memory.
struct RowsInGlobal {
  Global<const uint32_t> words;
  int64_t stride;  // words per row
  int head_dim;
  MEGALITE_DEVICE Vec<uint32_t, 4> load(int row, int chunk) const {
    return load_vec<4>(words, row * stride + chunk * 4);
  }
};

MEGALITE_DEVICE RowsInGlobal rows_of(Global<const half> tensor, const Strides& strides, int batch,
                                     int head, int head_dim) {
  const int64_t first = batch * strides.batch + head * strides.head;
  return {tensor.at(first).template as<const uint32_t>(), strides.row / 2, head_dim};
}

/// The rows of a block or warp: of one head of one sequence.
struct Place {
  int batch, head, first_row;
};

/// The rows of one head of one sequence of a contiguous result.
struct RowsOut {
  Global<uint32_t> words;
  int64_t stride;  // words per row
  int rows, head_dim;
};

/// A contiguous result [B, rows, heads, head_dim].
struct Result {
  Global<half> tensor;
  int rows, heads, head_dim;
  MEGALITE_DEVICE RowsOut rows_of(const Place& at) const {
    const int64_t first = (int64_t{at.batch} * rows * heads + at.head) * head_dim;
    return {tensor.at(first).template as<uint32_t>(), int64_t{heads} * head_dim / 2, rows,
            head_dim};
  }
};

/// f(x) for every number x of a multidimensional array in registers.
template <class F>
MEGALITE_DEVICE void for_each_float(float& x, F f) {
  f(x);
}
template <class T, int N, class F>
MEGALITE_DEVICE void for_each_float(T (&array)[N], F f) {
  MEGALITE_UNROLL
  for (T& x : array) for_each_float(x, f);
}

/// C in registers: [kRows][kColumns] of fp32, kRows * kColumns / 32 per lane.
template <int kRows, int kColumns>
struct Product {
  float c[kRows / kMmaTile][kColumns / kMmaTile][8];
  MEGALITE_DEVICE void clear() {
    for_each_float(c, [](float& x) { x = 0.0f; });
  }
};

/// Which 8 halves of a tile the n-th 16-byte copy moves. A quarter warp copies 8 vectors of a row,
/// or, if a row is no multiple of 8 vectors, 4 of each of two rows 4 apart: free of bank conflicts.
template <int D>
struct Chunk {
  int row, chunk;
  static MEGALITE_DEVICE Chunk of(int n) {
    if constexpr (D % 64 == 0) return {n / (D / 8), n % (D / 8)};
    const int group = n / kWarpSize, row = n / 4 % 2 * 4 + n / 8 % 4;
    return {group / (D / 32) * 8 + row, group % (D / 32) * 4 + n % 4};
  }
};

/// Copies rows of a tile from global to shared memory in two steps: `fetch` loads them into
/// registers; `store` writes them, once the previous tile has been read.
template <int D, int kRows, int kThreads>
struct TileCopy {
  static constexpr int kChunks = kRows * (D / 8), kCount = divide_up(kChunks, kThreads);
  Vec<uint32_t, 4> v[kCount];

  /// Whether this thread has an i-th chunk.
  static MEGALITE_DEVICE bool has(int i) {
    return kChunks % kThreads == 0 || thread_x() + i * kThreads < kChunks;
  }
  /// Rows from `first` on; zeros where `is_used(row)` is false and in columns from head_dim on.
  template <class IsUsed>
  MEGALITE_DEVICE void fetch(const RowsInGlobal& from, int first, IsUsed is_used) {
    MEGALITE_UNROLL
    for (int i = 0; i < kCount; ++i) {
      const auto at = Chunk<D>::of(thread_x() + i * kThreads);
      v[i] = {};
      if (has(i) && at.chunk * 8 < from.head_dim && is_used(first + at.row))
        v[i] = from.load(first + at.row, at.chunk);
    }
  }
  MEGALITE_DEVICE void store(const Tile<D>& tile) const {
    MEGALITE_UNROLL
    for (int i = 0; i < kCount; ++i) {
      const auto at = Chunk<D>::of(thread_x() + i * kThreads);
      if (has(i)) tile.store(at.row, at.chunk, v[i]);
    }
  }
};

/// Load kRows rows as TileCopy does, but kStep rows at a time, which takes fewer registers.
template <int kRows, int kThreads, int D, class IsUsed>
MEGALITE_DEVICE void copy_rows_in(const RowsInGlobal& from, int first, const Tile<D>& tile,
                                  IsUsed is_used) {
  constexpr int kStep = 32;  // at D = 32 and 128 threads, one vector per thread
  for (int row = 0; row < kRows; row += kStep) {
    TileCopy<D, kStep, kThreads> copy;
    copy.fetch(from, first + row, is_used);
    copy.store(tile.from_row(row));
  }
}

/// Operand A: the warp's rows of a shared tile, read when needed, or kept in registers
/// (kRows * D / 64 per lane).
template <int D, int kRows, bool kInRegisters>
struct OperandRows;

template <int D, int kRows>
struct OperandRows<D, kRows, false> {
  Tile<D> tile;
  int first;
  MEGALITE_DEVICE void load(const Tile<D>& from, int first_row) {
    tile = from;
    first = first_row + a_row();
  }
  MEGALITE_DEVICE Vec<uint32_t, 4> at(int fragment, int chunk) const {
    return tile.load(first + fragment * kMmaTile, chunk);
  }
};

template <int D, int kRows>
struct OperandRows<D, kRows, true> {
  Vec<uint32_t, 4> a[kRows / kMmaTile][D / 8];
  MEGALITE_DEVICE void load(const Tile<D>& from, int first_row) {
    MEGALITE_UNROLL
    for (int fragment = 0; fragment < kRows / kMmaTile; ++fragment) {
      MEGALITE_UNROLL
      for (int chunk = 0; chunk < D / 8; ++chunk)
        a[fragment][chunk] = from.load(first_row + fragment * kMmaTile + a_row(), chunk);
    }
  }
  MEGALITE_DEVICE Vec<uint32_t, 4> at(int fragment, int chunk) const { return a[fragment][chunk]; }
};

/// c = A B^T: A [kRows][D] in `rows`, B [kColumns][D] in shared memory.
template <int D, int kRows, int kColumns, bool kInRegisters>
MEGALITE_DEVICE void multiply_transposed(Product<kRows, kColumns>& out,
                                         const OperandRows<D, kRows, kInRegisters>& rows,
                                         const Tile<D>& b) {
  out.clear();
  MEGALITE_UNROLL
  for (int chunk = 0; chunk < D / 8; ++chunk) {
    Vec<uint32_t, 4> a[kRows / kMmaTile];
    MEGALITE_UNROLL
    for (int i = 0; i < kRows / kMmaTile; ++i) a[i] = rows.at(i, chunk);
    MEGALITE_UNROLL
    for (int j = 0; j < kColumns / kMmaTile; ++j) {
      const Vec<uint32_t, 4> w = b.load(b_column() + j * kMmaTile, chunk);
      MEGALITE_UNROLL
      for (int half_chunk = 0; half_chunk < 2; ++half_chunk) {
        const uint32_t bw[2] = {w.v[2 * half_chunk], w.v[2 * half_chunk + 1]};
        MEGALITE_UNROLL
        for (int i = 0; i < kRows / kMmaTile; ++i) {
          const uint32_t aw[2] = {a[i].v[2 * half_chunk], a[i].v[2 * half_chunk + 1]};
          mma_m8n8k4<Layout::row, Layout::col>(out.c[i][j], aw, bw);
        }
      }
    }
  }
}

/// A fragment of C, rounded to half, as operand A: w[step] are the columns along k of step 0 .. 3,
/// in the order of `step_row`.
struct FragmentAsA {
  uint32_t w[4][2];
};

MEGALITE_DEVICE FragmentAsA as_operand_a(const float (&c)[8]) {
  const bool is_low = (lane() & 2) == 0;  // this lane's A row is that of elements 0, 1, 4, 5
  const uint32_t low[2] = {pack2<half>(c[0], c[1]), pack2<half>(c[4], c[5])};
  const uint32_t high[2] = {pack2<half>(c[2], c[3]), pack2<half>(c[6], c[7])};
  FragmentAsA out;
  MEGALITE_UNROLL
  for (int i = 0; i < 2; ++i) {
    const uint32_t received = shfl_xor(is_low ? high[i] : low[i], 2);
    out.w[0][i] = is_low ? low[i] : received;
    out.w[1][i] = is_low ? received : high[i];
  }
  MEGALITE_UNROLL
  for (int step = 0; step < 2; ++step) {
    MEGALITE_UNROLL
    for (int i = 0; i < 2; ++i) out.w[step + 2][i] = shfl_xor(out.w[step][i], 8);
  }
  return out;
}

/// The row of B, of 16, that this lane holds in a step: of {0, 1, 4, 5} + 8j in step 0, of
/// {2, 3, 6, 7} + 8j in step 1, and of the same with the other j in steps 2 and 3.
MEGALITE_DEVICE int step_row(int step) {
  return (lane() & 1) + (lane() & 2) * 2 + (step & 1) * 2 + ((lane() & 8) ^ (step & 2) * 4);
}

/// Accumulators [kRows][D] of P B: o[i][chunk][u] is a fragment whose columns are given by
/// `sum_column`.
template <int kRows, int D>
struct Sums {
  float o[kRows / kMmaTile][D / 32][2][8];
  MEGALITE_DEVICE void clear() {
    for_each_float(o, [](float& x) { x = 0.0f; });
  }
};

/// Which 8 columns, of 32, of a row of B this lane holds.
MEGALITE_DEVICE int b_row_chunk() { return (lane() & 16) / 16 + (lane() & 8) / 4; }
/// The column of Sums, of 32, of element e of half u.
MEGALITE_DEVICE int sum_column(int u, int e) {
  return (lane() & 8) * 2 + (e & 4) * 2 + u * 4 + (lane() & 2) + (e & 1);
}

/// sums += P B: P [kRows][kColumns] rounded to half, B [kColumns][D] in shared memory.
template <int D, int kRows, int kColumns>
MEGALITE_DEVICE void multiply_add(Sums<kRows, D>& sums, const Product<kRows, kColumns>& p,
                                  const Tile<D>& b) {
  MEGALITE_UNROLL
  for (int j = 0; j < kColumns / kMmaTile; ++j) {
    FragmentAsA a[kRows / kMmaTile];
    MEGALITE_UNROLL
    for (int i = 0; i < kRows / kMmaTile; ++i) a[i] = as_operand_a(p.c[i][j]);
    MEGALITE_UNROLL
    for (int step = 0; step < 4; ++step) {
      MEGALITE_UNROLL
      for (int chunk = 0; chunk < D / 32; ++chunk) {
        const Vec<uint32_t, 4> w = b.load(step_row(step) + j * kMmaTile, b_row_chunk() + chunk * 4);
        MEGALITE_UNROLL
        for (int u = 0; u < 2; ++u) {
          const uint32_t bw[2] = {w.v[2 * u], w.v[2 * u + 1]};
          MEGALITE_UNROLL
          for (int i = 0; i < kRows / kMmaTile; ++i) {
            mma_m8n8k4<Layout::row, Layout::row>(sums.o[i][chunk][u], a[i].w[step], bw);
          }
        }
      }
    }
  }
}

template <int kRows, int D>
MEGALITE_DEVICE void scale_sums(Sums<kRows, D>& sums, float factor) {
  for_each_float(sums.o, [=](float& x) { x *= factor; });
}

/// Round sums to half and store them to rows from `first` on of a tile. Rows 8 apart share banks,
/// so the upper half of the warp starts with the other u.
template <int kRows, int D>
MEGALITE_DEVICE void store_sums(const Sums<kRows, D>& sums, const Tile<D>& tile, int first) {
  const int upper = (lane() & 16) / 16;
  MEGALITE_UNROLL
  for (int i = 0; i < kRows / kMmaTile; ++i) {
    MEGALITE_UNROLL
    for (int chunk = 0; chunk < D / 32; ++chunk) {
      MEGALITE_UNROLL
      for (int e = 0; e < 8; e += 2) {
        const auto& o = sums.o[i][chunk];
        const uint32_t w[2] = {pack2<half>(o[0][e], o[0][e + 1]),
                               pack2<half>(o[1][e], o[1][e + 1])};
        const int at = (first + i * kMmaTile + c_row(e)) * Tile<D>::kStride + chunk * 16;
        tile.words.store(at + sum_column(upper, e) / 2, upper == 0 ? w[0] : w[1]);
        tile.words.store(at + sum_column(1 - upper, e) / 2, upper == 0 ? w[1] : w[0]);
      }
    }
  }
}

/// Copy the warp's rows of a tile, from its row `first` on, to rows from `first_row` on of `to`.
template <int kRows, int D>
MEGALITE_DEVICE void copy_rows_out(const Tile<D>& tile, int first, const RowsOut& to,
                                   int first_row) {
  for (int n = lane(); n < kRows * (D / 8); n += kWarpSize) {
    const auto at = Chunk<D>::of(n);
    const int row = first_row + at.row;
    if (row < to.rows && at.chunk * 8 < to.head_dim)
      store_vec(to.words, row * to.stride + at.chunk * 4, tile.load(first + at.row, at.chunk));
  }
}

/// Write sums, rounded to half, to the warp's rows of a result, through its rows of a tile.
template <int kRows, int D>
MEGALITE_DEVICE void write_sums(const Sums<kRows, D>& sums, const Tile<D>& tile,
                                const Result& result, const Place& at) {
  syncwarp();  // the warp has read its rows of the tile
  store_sums(sums, tile, warp() * kRows);
  syncwarp();
  copy_rows_out<kRows>(tile, warp() * kRows, result.rows_of(at), at.first_row);
}

}  // namespace megalite::sm70
