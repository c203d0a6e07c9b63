// The parameters of the kernels for rows (logits, RoPE, dropout, norms, activations, embeddings)
// and their launchers; docs/design.md says what each tensor means. Sizes and strides count elements. T is half, bfloat16
// or float.
#pragma once

#include "activations.h"
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

/// Which elements of rows [B S, D] are dropped.
struct Drops {
  int rows_per_batch;                // S
  Global<const int64_t> sample_ids;  // [B]; null: none is
  int64_t position_offset, feature_offset;
  uint64_t seed;
  uint32_t threshold;  // elements with a random word below it become 0
  float scale;         // 1 / (1 - p)
};

template <class T>
struct DropoutParams {
  int batch, features;  // B, D
  Global<const T> x;    // [B, S, D]
  Global<T> out;        // [B, S, D]
  bool has_vectors;     // 16-byte accesses are aligned and start at a multiple of 4 features
  Drops drops;
};

/// Rows of a norm, [R, D].
struct NormRows {
  int64_t count;        // R
  int width;            // D
  int lanes;            // threads a row: a power of two up to a warp, or a block of whole warps
  bool has_vectors;     // a row is whole vectors of 16 bytes, at aligned addresses
  bool centred;         // LayerNorm
  float weight_offset;  // added to the weight
  float residual_scale;
  Drops drops;  // of the update
};

template <class T>
struct NormParams {
  NormRows rows;
  float eps;
  Global<const T> x, update;     // [R, D]; update: null without
  Global<const T> weight, bias;  // [D]; bias: null without
  Global<T> sum, out;            // [R, D]; sum: null without an update
  Global<float> mean, inverse;   // [R]; mean: null unless centred
};

template <class T>
struct NormGradientParams {
  NormRows rows;
  int num_blocks;
  Global<const T> dout, dsum;              // [R, D]; dsum: null without
  Global<const T> sum, weight;             // [R, D], [D]
  Global<const float> mean, inverse;       // [R]; mean: null unless centred
  Global<T> dx, dupdate;                   // [R, D]; dupdate: null where it is dx
  Global<float> weight_parts, bias_parts;  // [parts, D]; bias_parts: null without a bias
};

inline constexpr int kActivationThreads = 256;

/// out = activation(gate + its bias) (up + its bias), or activation(up + its bias).
template <class T>
struct ActivationParams {
  Activation kind;
  int64_t num_rows;                    // R
  int width;                           // F
  bool has_vectors;                    // a row is whole vectors of 16 bytes, at aligned addresses
  Global<const T> up, gate;            // [R, F]; gate: null without
  Global<const T> up_bias, gate_bias;  // [F]; null without
  Global<T> out;                       // [R, F]
};

template <class T>
struct ActivationGradientParams {
  Activation kind;
  int64_t num_rows;
  int width, num_parts;
  bool has_vectors;
  Global<const T> dout, up, gate;      // [R, F]; gate: null without
  Global<const T> up_bias, gate_bias;  // [F]; null without
  Global<T> dup, dgate;                // [R, F]; dgate: null without a gate
  Global<float> up_parts, gate_parts;  // [num_parts, F]; null without the bias
};

/// Rows of a table by their numbers, zeros for those of other slices.
template <class T>
struct EmbeddingParams {
  int64_t num_ids;            // T
  int width;                  // D
  bool has_vectors;           // a row is whole vectors of 16 bytes, at aligned addresses
  int64_t offset, height;     // rows [offset, offset + height) of the vocabulary are here
  int64_t vocabulary;         // rows in all slices
  Global<const T> weight;     // [height, D]
  Global<const int64_t> ids;  // [T]
  Global<T> out;              // [T, D]
};

template <class T>
struct EmbeddingGradientParams {
  int64_t num_ids;
  int width;
  bool has_vectors;
  int64_t offset, height;
  Global<const T> dout;  // [T, D]
  Global<const int64_t> ids,
      places;          // [T]: in ascending order; where each was, ascending among equals
  Global<T> gradient;  // [height, D], zeros
};

/// Sums of columns in a fixed order: out[d] = sum over p of parts[p, d].
template <class T>
struct ColumnSums {
  int num_parts, width;
  Global<const float> parts[2];  // [num_parts, width]; the second: null without
  Global<T> out[2];              // [width]
};

template <class T>
void logit_statistics(const LogitParams<T>& params, Stream stream);
template <class T>
void logit_gradient(const LogitParams<T>& params, Stream stream);
template <class T>
void rope(const RopeParams<T>& params, Stream stream);
template <class T>
void dropout(const DropoutParams<T>& params, Stream stream);
template <class T>
void add_norm(const NormParams<T>& params, Stream stream);
template <class T>
void add_norm_backward(const NormGradientParams<T>& params, Stream stream);
template <class T>
void activation(const ActivationParams<T>& params, Stream stream);
template <class T>
void activation_backward(const ActivationGradientParams<T>& params, Stream stream);
template <class T>
void embedding(const EmbeddingParams<T>& params, Stream stream);
template <class T>
void embedding_backward(const EmbeddingGradientParams<T>& params, Stream stream);
template <class T>
void column_sums(const ColumnSums<T>& params, Stream stream);

}  // namespace megalite
