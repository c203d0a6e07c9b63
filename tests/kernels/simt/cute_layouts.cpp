// Compares simt/fragments.h with CuTe's MMA_Traits and Copy_Traits; prints a line for each
// difference, returns their number.
#include <cstdio>
#include <cute/atom/copy_traits_sm75.hpp>
#include <cute/atom/mma_traits_sm70.hpp>
#include <cute/atom/mma_traits_sm80.hpp>

#include "simt/fragments.h"

using megalite::Layout;
using megalite::simt::Coordinate;

namespace {

int differences = 0;

/// CuTe maps (thread, value) to row + column * rows.
template <class CuteLayout, class Ours>
void compare(const char* what, CuteLayout layout, int rows, Ours ours) {
  for (int t = 0; t < static_cast<int>(cute::size<0>(layout)); ++t) {
    for (int v = 0; v < static_cast<int>(cute::size<1>(layout)); ++v) {
      const int index = static_cast<int>(layout(t, v));
      const Coordinate at = ours(t, v);
      if (index == at.row + at.col * rows) continue;
      std::printf("%s thread %d value %d: CuTe (%d, %d), ours (%d, %d)\n", what, t, v, index % rows,
                  index / rows, at.row, at.col);
      ++differences;
    }
  }
}

template <class Atom>
void compare_m16n8k16(const char* what) {
  using Traits = cute::MMA_Traits<Atom>;
  compare(what, typename Traits::ALayout{}, 16, megalite::simt::m16n8k16_a);
  // CuTe's B is (n, k); ours (k, n).
  compare(what, typename Traits::BLayout{}, 8, [](int t, int v) {
    const Coordinate at = megalite::simt::m16n8k16_b(t, v);
    return Coordinate{at.col, at.row};
  });
  compare(what, typename Traits::CLayout{}, 16, megalite::simt::m16n8k16_c);
}

template <class Atom, Layout A, Layout B>
void compare_m8n8k4(const char* what) {
  using Traits = cute::MMA_Traits<Atom>;
  compare(what, typename Traits::ALayout{}, 8,
          [](int t, int v) { return megalite::simt::m8n8k4_a(A, t, v); });
  compare(what, typename Traits::BLayout{}, 8, [](int t, int v) {
    const Coordinate at = megalite::simt::m8n8k4_b(B, t, v);
    return Coordinate{at.col, at.row};
  });
  compare(what, typename Traits::CLayout{}, 8, megalite::simt::m8n8k4_c);
  for (int t = 0; t < 8; ++t) {  // the lanes of the first quadpair
    if (static_cast<int>(typename Traits::ThrID{}(t)) == megalite::simt::quadpair_lane(0, t))
      continue;
    std::printf("%s: thread %d is another lane\n", what, t);
    ++differences;
  }
}

/// CuTe counts bits of the 8 rows of 128 bits; a lane's value v is bit v of its register.
template <class Atom>
void compare_ldmatrix(const char* what, bool transposed) {
  const auto layout = typename cute::Copy_Traits<Atom>::DstLayout{};
  for (int t = 0; t < 32; ++t) {
    for (int e = 0; e < 2; ++e) {
      for (int matrix = 0; matrix < static_cast<int>(cute::size<1>(layout)) / 32; ++matrix) {
        const int half = static_cast<int>(layout(t, matrix * 32 + e * 16)) / 16;
        const Coordinate at = megalite::simt::ldmatrix_element(transposed, t, e);
        if (half == matrix * 64 + at.row * 8 + at.col) continue;
        std::printf("%s lane %d element %d of matrix %d: CuTe half %d\n", what, t, e, matrix, half);
        ++differences;
      }
    }
  }
}

}  // namespace

int main() {
  compare_m16n8k16<cute::SM80_16x8x16_F32F16F16F32_TN>("m16n8k16 half");
  compare_m16n8k16<cute::SM80_16x8x16_F32BF16BF16F32_TN>("m16n8k16 bfloat16");
  compare_m8n8k4<cute::SM70_8x8x4_F32F16F16F32_TN, Layout::row, Layout::col>("m8n8k4 TN");
  compare_m8n8k4<cute::SM70_8x8x4_F32F16F16F32_NT, Layout::col, Layout::row>("m8n8k4 NT");
  compare_m8n8k4<cute::SM70_8x8x4_F32F16F16F32_NN, Layout::col, Layout::col>("m8n8k4 NN");
  compare_m8n8k4<cute::SM70_8x8x4_F32F16F16F32_TT, Layout::row, Layout::row>("m8n8k4 TT");
  compare_ldmatrix<cute::SM75_U32x1_LDSM_N>("ldmatrix", false);
  compare_ldmatrix<cute::SM75_U32x4_LDSM_N>("ldmatrix x4", false);
  compare_ldmatrix<cute::SM75_U16x2_LDSM_T>("ldmatrix trans", true);
  compare_ldmatrix<cute::SM75_U16x8_LDSM_T>("ldmatrix x4 trans", true);
  return differences == 0 ? 0 : 1;
}
