// Tiles of 16-bit numbers in shared memory and their m16n8k16 fragments; sm_80 and later.
//
// Mapping: a row is a sequence of 16-byte vectors, swizzled: vector c of row r is stored at
//   position c ^ mix(r) of the row, so that the eight rows of an ldmatrix phase are in different
//   banks.
// Source: PTX ISA, "Matrix Fragments for mma.m16n8k16"; the swizzle is CuTe's Swizzle<3,3,3> for
//   rows of a multiple of 128 bytes and Swizzle<2,3,3> for others.
#pragma once

#include "cuda/intrinsics.cuh"

namespace megalite::sm80 {

/// A tile of rows of kDim elements, as one thread sees it. Row arguments of the fragment loads are
/// multiples of 8, vector arguments are even.
template <class T, int kDim>
struct SharedTile {
  static_assert(kDim % 32 == 0, "rows are multiples of 64 bytes");
  Shared<T> data;
  int thread;

  MEGALITE_DEVICE static int at(int row, int vector) {
    const int mix = kDim % 64 == 0 ? row & 7 : row >> 1 & 3;
    return row * kDim + (vector ^ mix) * 8;
  }

  /// A [16 rows, 16] starting at (row, column 8 * vector).
  MEGALITE_DEVICE void load_a(uint32_t (&a)[4], int row, int vector) const {
    ldmatrix_x4(a, data, column_first(row, vector));
  }
  /// A [16, 16 rows]: the tile holds its transpose, with rows along k.
  MEGALITE_DEVICE void load_a_transposed(uint32_t (&a)[4], int row, int vector) const {
    ldmatrix_x4_trans(a, data, row_first(row, vector));
  }
  /// Two B [16, 8 rows] side by side: the tile's rows are along n, its columns along k.
  MEGALITE_DEVICE void load_b(uint32_t (&b)[2][2], int row, int vector) const {
    uint32_t r[4];
    ldmatrix_x4(r, data, row_first(row, vector));
    b[0][0] = r[0], b[0][1] = r[1], b[1][0] = r[2], b[1][1] = r[3];
  }
  /// Two B [16 rows, 8] side by side: the tile's rows are along k, its columns along n.
  MEGALITE_DEVICE void load_b_transposed(uint32_t (&b)[2][2], int row, int vector) const {
    uint32_t r[4];
    ldmatrix_x4_trans(r, data, column_first(row, vector));
    b[0][0] = r[0], b[0][1] = r[1], b[1][0] = r[2], b[1][1] = r[3];
  }

  // 8 or 4 threads copy a row together, so that they read whole 128-byte lines.
  static constexpr int kAcross = kDim % 64 == 0 ? 8 : 4;

  /// Bit i: whether the i-th row that this thread copies satisfies `is_wanted(row)`.
  template <int kRows, int kThreads, class F>
  MEGALITE_DEVICE uint32_t wanted_rows(F is_wanted) const {
    uint32_t wanted = 0;
    MEGALITE_UNROLL
    for (int i = 0; i < kRows * kAcross / kThreads; ++i) {
      const bool is = is_wanted(thread / kAcross + i * (kThreads / kAcross));
      wanted |= static_cast<uint32_t>(is) << i;
    }
    return wanted;
  }

  /// Start an asynchronous copy of rows [kRows, head_dim], `stride` apart; rows that are not wanted
  /// and columns from head_dim on become zeros.
  template <int kRows, int kThreads>
  MEGALITE_DEVICE void start_copy(Global<const T> rows, int64_t stride, int head_dim,
                                  uint32_t wanted) const {
    constexpr int kDown = kThreads / kAcross;
    static_assert(kRows % kDown == 0, "every thread copies the same number of rows");
    const int first_row = thread / kAcross, first_vector = thread % kAcross;
    int64_t from = first_row * stride + first_vector * 8;
    MEGALITE_UNROLL
    for (int i = 0; i < kRows / kDown; ++i, from += kDown * stride) {
      MEGALITE_UNROLL
      for (int c = 0; c < kDim / 8; c += kAcross) {
        cp_async16(data, at(first_row + i * kDown, first_vector + c), rows, from + c * 8,
                   (wanted >> i & 1u) && (first_vector + c) * 8 < head_dim);
      }
    }
  }

 private:
  // The address that a lane passes to ldmatrix for four 8 x 8 matrices: the first two along the
  // rows, then the two to their right (column_first), or the first two side by side (row_first).
  // The lane's part does not depend on the arguments, which only add to it or flip its bits.
  MEGALITE_DEVICE int column_first(int row, int vector) const {
    return row * kDim + swizzled(at(thread & 15, thread >> 4 & 1), vector);
  }
  MEGALITE_DEVICE int row_first(int row, int vector) const {
    const int lane_row = (thread & 7) + (thread >> 4 & 1) * 8;
    return row * kDim + swizzled(at(lane_row, thread >> 3 & 1), vector);
  }
  MEGALITE_DEVICE static int swizzled(int lane_offset, int vector) {
    constexpr int kPeriod = kDim % 64 == 0 ? 8 : 4;
    return (lane_offset ^ vector % kPeriod * 8) + vector / kPeriod * kPeriod * 8;
  }
};

/// thread_x(), passed through a shuffle so that the compiler can't tell that it is the same value
/// as elsewhere: addresses derived from it are recomputed where it is called, which is cheaper than
/// keeping them in registers across a kernel's main loop. All lanes of a warp must call it.
MEGALITE_DEVICE int thread_x_anew() { return shfl_xor(thread_x(), 0); }

/// Two adjacent C fragments [16, 8] as one A fragment [16, 16].
template <class T>
MEGALITE_DEVICE void pack_a(uint32_t (&a)[4], const float (&left)[4], const float (&right)[4]) {
  a[0] = pack2<T>(left[0], left[1]);
  a[1] = pack2<T>(left[2], left[3]);
  a[2] = pack2<T>(right[0], right[1]);
  a[3] = pack2<T>(right[2], right[3]);
}

/// Sum or maximum over the four lanes that share a row of a C fragment.
MEGALITE_DEVICE float quad_sum(float x) {
  x += shfl_xor(x, 1);
  return x + shfl_xor(x, 2);
}
MEGALITE_DEVICE float quad_max(float x) {
  x = fmaxf(x, shfl_xor(x, 1));
  return fmaxf(x, shfl_xor(x, 2));
}

}  // namespace megalite::sm80
