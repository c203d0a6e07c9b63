// What the kernels of rows are given, and their launchers; docs/design.md says what each tensor
// means. Sizes and strides count elements. T is half, bfloat16 or float.
#pragma once

#include "attention_params.cuh"

namespace megalite {

struct MaskPlanParams {
  int batch, queries, num_keys;      // B, Sq, K
  Global<const int32_t> start, end;  // [B, Sq]
  Global<int32_t> rows;              // [B, ceil(Sq/32), 4]: min start, max end, max start, min end
  Global<int32_t> keys;              // [B, ceil(K/32), 3]: first, last row, attended keys
};

/// Both passes of cross-entropy. `logits` and `gradient` may be one tensor, so neither is const.
template <class T>
struct LogitParams {
  int64_t num_rows, width;       // T, V
  int64_t offset;                // number of the first token here
  int misalignment;              // elements of `logits` and `gradient` past a 16-byte boundary
  Global<T> logits;              // [T, V]
  Global<const int64_t> labels;  // [T]
  Global<float> statistics;      // [5, T]; forward only
  Global<T> gradient;            // [T, V]; from here on backward only
  Global<const float> lse, upstream;  // [T]
  int64_t vocabulary;                 // tokens in the whole vocabulary
  float label_smoothing, z_loss;
};

template <class T>
struct RopeParams {
  int rows_per_batch, batch, heads, head_dim;  // S, B, N, H
  int axes, half;                              // P, R/(2P)
  Global<const T> x;                           // [B, S, N, H]
  Global<T> out;                               // the same; may be x
  Strides x_strides, out_strides;
  Global<const float> cos, sin;  // [B, S, P, R/(2P)]
  bool interleaved;
  bool has_vectors;  // 16-byte accesses of x, out and the tables are aligned
  float sign;        // of the sine: -1 turns back
};

template <class T>
struct DropoutParams {
  int rows_per_batch, batch, features;  // S, B, D
  Global<const T> x;                    // [B, S, D]
  Global<T> out;                        // [B, S, D]
  Global<const int64_t> sample_ids;     // [B]
  int64_t position_offset, feature_offset;
  bool has_vectors;  // 16-byte accesses are aligned and begin at whole counters
  uint64_t seed;
  uint32_t threshold;  // a word below it drops
  float scale;         // 1 / (1 - p)
};

void mask_plan(const MaskPlanParams& params, Stream stream);
template <class T>
void logit_statistics(const LogitParams<T>& params, Stream stream);
template <class T>
void logit_gradient(const LogitParams<T>& params, Stream stream);
template <class T>
void rope(const RopeParams<T>& params, Stream stream);
template <class T>
void dropout(const DropoutParams<T>& params, Stream stream);

}  // namespace megalite
