// Which element of which matrix each lane of a warp holds for the tensor-core instructions.
// Source: PTX ISA, "Matrix fragments for mma.m8n8k4" and "... mma.m16n8k16"; checked in the tests
// against CuTe's MMA_Traits.
#pragma once

#include "cuda/intrinsics.cuh"

namespace megalite::simt {

struct Coordinate {
  int row, col;
};

// m16n8k16: element e of A (0..7, two a register), of B (0..3, row = k, col = n), of C and D
// (0..3).
constexpr Coordinate m16n8k16_a(int lane, int e) {
  return {lane / 4 + (e & 2) * 4, lane % 4 * 2 + (e & 1) + (e & 4) * 2};
}
constexpr Coordinate m16n8k16_b(int lane, int e) {
  return {lane % 4 * 2 + (e & 1) + (e & 2) * 4, lane / 4};
}
constexpr Coordinate m16n8k16_c(int lane, int e) {
  return {lane / 4 + (e & 2) * 4, lane % 4 * 2 + (e & 1)};
}

// m8n8k4: a quadpair is 8 lanes, four consecutive ones and those 16 above; thread t of it is 0..7.
constexpr int quadpair(int lane) { return lane / 4 % 4; }
constexpr int quadpair_thread(int lane) { return lane % 4 + lane / 16 * 4; }
constexpr int quadpair_lane(int pair, int thread) {
  return pair * 4 + thread % 4 + thread / 4 * 16;
}
/// Element e (0..3) of A (row = m, col = k) or of B (row = k, col = n).
constexpr Coordinate m8n8k4_a(Layout layout, int t, int e) {
  return layout == Layout::row ? Coordinate{t, e} : Coordinate{e + (t & 4), t & 3};
}
constexpr Coordinate m8n8k4_b(Layout layout, int t, int e) {
  return layout == Layout::col ? Coordinate{e, t} : Coordinate{t & 3, e + (t & 4)};
}
constexpr Coordinate m8n8k4_c(int t, int e) {
  return {(t & 1) + (e & 2) + (t & 4), (e & 1) + (t & 2) + (e & 4)};
}

/// ldmatrix: the row and column of an 8x8 matrix that lane `lane` gets as element e (0, 1) of its
/// register.
constexpr Coordinate ldmatrix_element(bool transposed, int lane, int e) {
  return transposed ? Coordinate{lane % 4 * 2 + e, lane / 4}
                    : Coordinate{lane / 4, lane % 4 * 2 + e};
}

}  // namespace megalite::simt
