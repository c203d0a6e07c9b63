// The operations that the lanes of a warp carry out together, done once for all of them when the
// last lane arrives.
#include <cstring>

#include "simt/fragments.h"
#include "simt/machine.h"
#include "simt/numbers.h"

namespace megalite::simt {
namespace {

template <class F>
void for_each_lane(uint32_t mask, F f) {
  for (; mask != 0; mask &= mask - 1) f(__builtin_ctz(mask));
}

int shuffle_source(const WarpRequest& request, int lane) {
  switch (request.op) {
    case WarpOp::shuffle_xor:
      return (lane ^ request.argument) & 31;
    case WarpOp::shuffle_down:
      return lane + request.argument < 32 ? lane + request.argument : lane;
    default:
      return request.argument & 31;
  }
}

void shuffle(Machine& machine, Warp& warp, const WarpRequest& first) {
  ++machine.counters->shuffles;
  for_each_lane(first.mask, [&](int lane) {
    WarpRequest& mine = *warp.requests[lane];
    const int source = shuffle_source(mine, lane);
    if (!(first.mask >> source & 1u)) {
      fail(first.site, "shuffle: lane %d reads lane %d, which mask 0x%08x lacks", lane, source,
           first.mask);
    }
    mine.result = warp.requests[source]->value;
  });
}

void vote(Warp& warp, const WarpRequest& first) {
  uint32_t votes = 0;
  for_each_lane(first.mask, [&](int lane) {
    votes |= static_cast<uint32_t>(warp.requests[lane]->value != 0) << lane;
  });
  uint32_t result = votes;
  if (first.op == WarpOp::any) result = votes != 0;
  if (first.op == WarpOp::all) result = votes == first.mask;
  for_each_lane(first.mask, [&](int lane) { warp.requests[lane]->result = result; });
}

void require_whole_warp(const WarpRequest& first, const char* name) {
  if (first.mask != kFullMask)
    fail(first.site, "%s needs all 32 lanes, not mask 0x%08x", name, first.mask);
}

/// The 16-bit numbers of a lane's registers.
inline uint16_t element(const uint32_t* registers, int e) {
  return static_cast<uint16_t>(registers[e / 2] >> (e % 2 * 16));
}

template <float (*Convert)(uint16_t)>
void mma_m16n8k16(Warp& warp) {
  float a[16][16], b[16][8], d[16][8];
  for (int lane = 0; lane < 32; ++lane) {
    const WarpRequest& mine = *warp.requests[lane];
    for (int e = 0; e < 8; ++e) {
      const Coordinate at = m16n8k16_a(lane, e);
      a[at.row][at.col] = Convert(element(mine.a, e));
    }
    for (int e = 0; e < 4; ++e) {
      const Coordinate at = m16n8k16_b(lane, e);
      b[at.row][at.col] = Convert(element(mine.b, e));
      const Coordinate out = m16n8k16_c(lane, e);
      d[out.row][out.col] = mine.d[e];
    }
  }
  for (int m = 0; m < 16; ++m) {
    for (int k = 0; k < 16; ++k) {
      for (int n = 0; n < 8; ++n) d[m][n] += a[m][k] * b[k][n];
    }
  }
  for (int lane = 0; lane < 32; ++lane) {
    for (int e = 0; e < 4; ++e) {
      const Coordinate out = m16n8k16_c(lane, e);
      warp.requests[lane]->d[e] = d[out.row][out.col];
    }
  }
}

void mma_m8n8k4(Warp& warp, Layout layout_a, Layout layout_b) {
  for (int pair = 0; pair < 4; ++pair) {
    float a[8][4], b[4][8], d[8][8];
    for (int t = 0; t < 8; ++t) {
      const WarpRequest& mine = *warp.requests[quadpair_lane(pair, t)];
      for (int e = 0; e < 4; ++e) {
        const Coordinate in_a = m8n8k4_a(layout_a, t, e), in_b = m8n8k4_b(layout_b, t, e);
        a[in_a.row][in_a.col] = half_to_float(element(mine.a, e));
        b[in_b.row][in_b.col] = half_to_float(element(mine.b, e));
      }
      for (int e = 0; e < 8; ++e) {
        const Coordinate out = m8n8k4_c(t, e);
        d[out.row][out.col] = mine.d[e];
      }
    }
    for (int m = 0; m < 8; ++m) {
      for (int k = 0; k < 4; ++k) {
        for (int n = 0; n < 8; ++n) d[m][n] += a[m][k] * b[k][n];
      }
    }
    for (int t = 0; t < 8; ++t) {
      for (int e = 0; e < 8; ++e) {
        const Coordinate out = m8n8k4_c(t, e);
        warp.requests[quadpair_lane(pair, t)]->d[e] = d[out.row][out.col];
      }
    }
  }
}

/// Lanes 8m .. 8m + 7 give the rows of matrix m. A row reaches four lanes, so it is read on behalf
/// of the whole warp.
void ldmatrix(Machine& machine, Warp& warp, int warp_index, const WarpRequest& first) {
  const Tag reader =
      (machine.tag & ~Tag{0xffff}) | (kWarpReader + static_cast<uint32_t>(warp_index));
  const int matrices = first.argument;
  ++machine.counters->ldmatrix;
  for (int m = 0; m < matrices; ++m) {
    const unsigned char* rows[8];
    std::vector<BankAccess> phase;
    for (int r = 0; r < 8; ++r) {
      const uint32_t offset = warp.requests[8 * m + r]->value;
      machine.counters->shared_read_bytes += 16;
      machine.shared.read(first.site, reader, offset, 16);
      rows[r] = machine.shared.data(offset);
      if (machine.count_banks) phase.push_back({first.site, offset, 16});
    }
    if (machine.count_banks) machine.counters->ldmatrix_conflicts += wavefronts(phase).total - 1;
    for (int lane = 0; lane < 32; ++lane) {
      uint16_t pair[2];
      for (int e = 0; e < 2; ++e) {
        const Coordinate at = ldmatrix_element(first.transposed, lane, e);
        std::memcpy(&pair[e], rows[at.row] + 2 * at.col, 2);
      }
      warp.requests[lane]->registers[m] = pair[0] | static_cast<uint32_t>(pair[1]) << 16;
    }
  }
}

}  // namespace

void perform(Machine& machine, Warp& warp, int warp_index, const WarpRequest& first) {
  switch (first.op) {
    case WarpOp::sync:
      return;
    case WarpOp::shuffle:
    case WarpOp::shuffle_xor:
    case WarpOp::shuffle_down:
      return shuffle(machine, warp, first);
    case WarpOp::ballot:
    case WarpOp::any:
    case WarpOp::all:
      return vote(warp, first);
    case WarpOp::ldmatrix:
      require_whole_warp(first, "ldmatrix");
      return ldmatrix(machine, warp, warp_index, first);
    case WarpOp::mma_m16n8k16:
      require_whole_warp(first, "mma_m16n8k16");
      ++machine.counters->mma_m16n8k16;
      return first.argument == 0 ? mma_m16n8k16<half_to_float>(warp)
                                 : mma_m16n8k16<bfloat16_to_float>(warp);
    case WarpOp::mma_m8n8k4:
      require_whole_warp(first, "mma_m8n8k4");
      ++machine.counters->mma_m8n8k4;
      return mma_m8n8k4(warp, first.argument & 2 ? Layout::col : Layout::row,
                        first.argument & 1 ? Layout::col : Layout::row);
  }
}

}  // namespace megalite::simt
