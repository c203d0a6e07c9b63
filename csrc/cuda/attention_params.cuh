// What an attention kernel is given; docs/design.md says what each tensor means. Sizes and strides
// count elements; the last dimension of every tensor is contiguous.
#pragma once

#include "intrinsics.cuh"

namespace megalite {

inline constexpr int kPlanTile = 32;  // query rows and keys an entry of the mask's plan

/// Strides of a tensor [B, S, heads, H].
struct Strides {
  int64_t batch, row, head;
};

/// Dropout of probabilities: a word below `threshold` drops; 0 keeps all. See csrc/philox.h.
struct AttentionDropout {
  uint32_t threshold = 0;
  float scale = 1.0f;  // 1 / (1 - p)
  uint64_t seed = 0;
  Global<const int64_t> sample_ids;  // [B]
  int head_offset = 0;
};

/// The forward pass. T is half or bfloat16.
template <class T>
struct AttentionParams {
  int batch, queries, keys, heads, groups, head_dim;  // B, Sq, Sk, N, G, H
  Global<const T> q, k, v;                            // [B, Sq, N, H], [B, Sk, G, H] twice
  Strides q_strides, k_strides, v_strides;
  Global<T> out;                     // [B, Sq, N, H], contiguous
  Global<float> lse;                 // [B, N, Sq], natural logarithm; -inf without keys
  Global<const int32_t> start, end;  // [B, Sq]
  Global<const int32_t> row_plan;    // [B, ceil(Sq/32), 4]: min start, max end, max start, min end
  Global<const int32_t> key_plan;    // [B, ceil(Sk/32), 3]: first, last row, attended keys
  Global<const float> bias;          // [N, Sq + Sk - 1] by key - query + Sq - 1, or null
  float scale;                       // of q k^T
  AttentionDropout dropout;
};

/// The backward pass, beside the forward pass's parameters (`out` and `lse` are read).
template <class T>
struct AttentionGradients {
  Global<const T> dout;  // [B, Sq, N, H]
  Strides dout_strides;
  Global<float> delta;    // [B, N, Sq] scratch: sum over H of dout * out
  Global<T> dq;           // [B, Sq, N, H], contiguous
  Global<T> dk, dv;       // [B, Sk, G, H], contiguous
  Global<float> dbias;    // [N, Sq + Sk - 1], or null
  Global<float> scratch;  // fp32, as many elements as the launcher asks for
};

}  // namespace megalite
