// The parameters of the kernels for rows (logits, RoPE, dropout) and their launchers;
// docs/design.md says what each tensor means. Sizes and strides count elements. T is half, bfloat16
// or float.
#pragma once

#include "cuda/intrinsics.cuh"
#include "cuda/strides.cuh"

namespace megalite {

/// Both passes of cross-entropy. `logits` and `gradient` may be one tensor, so neither is const.
template <class T>
struct LogitParams {
  int64_t num_rows, width;            // T, V
  int64_t offset;                     // of the first token of this slice
  int misalignment;                   // elements of `logits` and `gradient` past a 16-byte boundary
  Global<T> logits;                   // [T, V]
  Global<const int64_t> labels;       // [T]
  Global<float> statistics;           // [5, T]; forward only
  Global<T> gradient;                 // [T, V]; this and what follows: backward only
  Global<const float> lse, upstream;  // [T]
  int64_t vocabulary;                 // tokens in the whole vocabulary
  float label_smoothing, z_loss;
};

template <class T>
struct RopeParams {
  int rows_per_batch, batch, heads, head_dim;  // S, B, N, H
  int axes, half;                              // P, R/(2P)
  Global<const T> x;                           // [B, S, N, H]
  Global<T> out;                               // [B, S, N, H]; may be x
  Strides x_strides, out_strides;
  Global<const float> cos, sin;  // [B, S, P, R/(2P)]
  bool interleaved;
  bool has_vectors;  // 16-byte accesses of x, out and the tables are aligned
  float sign;        // of the sine: -1 rotates back
};

template <class T>
struct DropoutParams {
  int rows_per_batch, batch, features;  // S, B, D
  Global<const T> x;                    // [B, S, D]
  Global<T> out;                        // [B, S, D]
  Global<const int64_t> sample_ids;     // [B]
  int64_t position_offset, feature_offset;
  bool has_vectors;  // 16-byte accesses are aligned and start at a multiple of 4 features
  uint64_t seed;
  uint32_t threshold;  // elements with a random word below it become 0
  float scale;         // 1 / (1 - p)
};

template <class T>
void logit_statistics(const LogitParams<T>& params, Stream stream);
template <class T>
void logit_gradient(const LogitParams<T>& params, Stream stream);
template <class T>
void rope(const RopeParams<T>& params, Stream stream);
template <class T>
void dropout(const DropoutParams<T>& params, Stream stream);

}  // namespace megalite
