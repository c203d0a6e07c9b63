// The parameters of the attention kernels and of the mask's plan, and their launchers;
// docs/design.md says what each tensor means. Sizes and strides count elements; the last dimension
// of every tensor is contiguous.
#pragma once

#include "cuda/intrinsics.cuh"
#include "cuda/strides.cuh"
#include "mask_plan.h"

namespace megalite {

struct MaskPlanParams {
  int batch, queries, num_keys;      // B, Sq, K
  Global<const int32_t> start, end;  // [B, Sq]
  Global<int32_t> rows;              // [B, ceil(Sq/32), 4]: min start, max end, max start, min end
  Global<int32_t> keys;              // [B, ceil(K/32), 3]: first, last row, attended keys
};

/// Dropout of probabilities: one whose random word is below `threshold` becomes 0; a threshold of 0
/// keeps all. See csrc/philox.h.
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

/// The backward pass, in addition to the forward pass's parameters (`out` and `lse` are read).
template <class T>
struct AttentionGradients {
  Global<const T> dout;  // [B, Sq, N, H]
  Strides dout_strides;
  Global<float> delta;    // [B, N, Sq] workspace: sum over H of dout * out
  Global<T> dq;           // [B, Sq, N, H], contiguous
  Global<T> dk, dv;       // [B, Sk, G, H], contiguous
  Global<float> dbias;    // [N, Sq + Sk - 1], or null
  Global<float> scratch;  // workspace, of the size that the launcher asks for
};

/// How the blocks of sm_80's backward kernel divide the work; sm80/backward_work.cuh says why.
struct BackwardSchedule {
  int rows, keys;          // of a tile
  int blocks_per_sm;       // that run at the same time
  int together;            // tiles of keys of a key head that are next to each other in order
  int parts;               // blocks for a tile of keys
  int fine_tiles, levels;  // tiles of a key head whose parts are divided further, and how often
  int slots;               // partial sums of dk and dv of a divided tile
  int64_t partial_bytes, scratch_bytes;  // summed over blocks; all of the workspace
};

inline constexpr int kSplitKeys = 128;  // keys of a sequence that a block of threads has

/// One query row a sequence over keys and values in blocks. T is half, bfloat16 or float.
template <class T>
struct PagedParams {
  int batch, heads, groups, head_dim;  // B, N, G, H
  int block_rows, table_size;          // R, T
  int64_t num_blocks, most_keys;       // blocks, K
  int num_splits;                      // runs of kSplitKeys keys in K
  Global<const T> q, k, v;             // [B, N, H], [blocks, G, R, H] twice
  Global<const int32_t> tables;        // [B, T]
  Global<const int32_t> start, end;    // [B]
  Global<const float> bias;            // [N, K] by distance, or null
  float scale;                         // of q k^T
  Global<T> out;                       // [B, N, H]
  Global<float> sums, tops;  // workspace: [splits, B, N, H]; [splits, B, N, 2]: top, total
};

#ifndef __CUDACC_RTC__
template <class T>
void paged_attention(const PagedParams<T>& params, Stream stream);

void mask_plan(const MaskPlanParams& params, Stream stream);

/// Scores, softmax and product with v; T = half or bfloat16.
template <class T>
void attention_forward_sm80(const AttentionParams<T>& params, Stream stream);

/// Size of the backward pass's workspace, in fp32 elements.
template <class T>
int64_t attention_backward_scratch_sm80(const AttentionParams<T>& params, bool has_bias);

template <class T>
BackwardSchedule attention_backward_schedule_sm80(const AttentionParams<T>& params, bool has_bias);

/// All gradients; dbias where it is not null.
template <class T>
void attention_backward_sm80(const AttentionParams<T>& params,
                             const AttentionGradients<T>& gradients, Stream stream);

// The same for GPUs whose blocks have 99 KiB of shared memory, where the kernels above don't fit:
// forward for H above 192, backward for H above 64 up to 192.
template <class T>
void attention_forward_sm86(const AttentionParams<T>& params, Stream stream);
template <class T>
int64_t attention_backward_scratch_sm86(const AttentionParams<T>& params, bool has_bias);
template <class T>
BackwardSchedule attention_backward_schedule_sm86(const AttentionParams<T>& params, bool has_bias);
template <class T>
void attention_backward_sm86(const AttentionParams<T>& params,
                             const AttentionGradients<T>& gradients, Stream stream);

void attention_forward_sm70(const AttentionParams<half>& params, Stream stream);
int64_t attention_backward_scratch_sm70(const AttentionParams<half>& params, bool has_bias);
void attention_backward_sm70(const AttentionParams<half>& params,
                             const AttentionGradients<half>& gradients, Stream stream);
#endif

}  // namespace megalite
