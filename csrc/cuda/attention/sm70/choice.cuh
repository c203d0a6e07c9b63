// Which instantiation of the sm_70 attention kernels a call runs: head dimension rounded up, bias
// or not, dropout or not.
#pragma once

#include "cuda/attention/tiles.cuh"

namespace megalite::sm70 {

template <int D, bool has_bias, bool drops>
struct Choice {
  static constexpr int kHeadDim = D;
  static constexpr bool kHasBias = has_bias, kDrops = drops;
};

template <int D, class F>
void select_extras(const AttentionParams<half>& p, F f) {
  // Without a bias, scores are masked to -inf before they are scaled, which a scale <= 0 would
  // break; with a bias they are scaled first.
  const bool has_bias = static_cast<bool>(p.bias) || p.scale <= 0.0f;
  if (has_bias && p.dropout.threshold != 0) return f(Choice<D, true, true>{});
  if (has_bias) return f(Choice<D, true, false>{});
  if (p.dropout.threshold != 0) return f(Choice<D, false, true>{});
  return f(Choice<D, false, false>{});
}

/// Calls f with the Choice of template arguments for `p`.
template <class F>
void select(const AttentionParams<half>& p, F f) {
  if (p.head_dim <= 32) return select_extras<32>(p, f);
  if (p.head_dim <= 64) return select_extras<64>(p, f);
  if (p.head_dim <= 96) return select_extras<96>(p, f);
  if (p.head_dim <= 128) return select_extras<128>(p, f);
  if (p.head_dim <= 192) return select_extras<192>(p, f);
  return select_extras<256>(p, f);
}

}  // namespace megalite::sm70
