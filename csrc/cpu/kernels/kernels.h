// The arguments of the CPU kernels, and a table of the kernels for each instruction set.
//
// A kernel runs one task of a parallel loop. Tasks are independent and write disjoint memory, so
// the result does not depend on the number of threads. All floating-point data is fp32.
#pragma once

#include <cstdint>

#include "activations.h"

namespace megalite::cpu {

constexpr int64_t kTile = 64;      // query rows, or keys, of a tile of attention
constexpr int64_t kMaxLanes = 16;  // widest vector, in floats

// A [B, S, heads, H] tensor whose last dimension is contiguous; strides in elements.
struct Strided {
  float* data;
  int64_t batch, row, head;
  float* at(int64_t b, int64_t s, int64_t n) const { return data + b * batch + s * row + n * head; }
};

struct Attention {
  Strided q, k, v, out;
  float* lse;                  // [B, N, Sq]
  const int32_t *start, *end;  // [B, Sq]
  const int32_t *rows, *keys;  // the tile plan
  const float* reversed_bias;  // [N, bias_row]: bias of distance d at Sk - 1 - d; null without
  int64_t bias_row;            // Sq + Sk - 1, padded by a tile
  int64_t batch, queries, num_keys, heads, groups, head_dim;
  float scale;
  float score_cap;  // scores are cap tanh(scores / cap), and there is no bias; 0: they are not
  double dropout_p;
  uint64_t dropout_seed;
  const int64_t* sample_ids;  // [B]
  int64_t head_offset;
  // [B, G, packed_stride]: for each head, [Sk, padded H] and Sk + 1 counts; null: read k, v
  const float *packed_k, *packed_v;
  int64_t packed_stride;
};

struct AttentionGradient {
  Attention forward;
  Strided dout, dk, dv;
  float* dq;              // [chunks, B, Sq, N, H]
  float* dbias_reversed;  // [chunks, B, N, bias_row], initially zero; null without
  int64_t chunks, chunk_keys;
};

struct Rows {
  const float* logits;          // [T, V]
  float* gradient;              // [T, V]; may be logits
  const float *lse, *upstream;  // [T]
  const int64_t* labels;        // [T]
  float* statistics;            // [5, T]
  int64_t num_rows, width, offset, vocabulary;
  float label_smoothing, z_loss;
  bool streams;  // write the gradient with non-temporal stores
};

struct Rope {
  Strided x, out;          // [B, S, N, H]; may be one tensor
  const float *cos, *sin;  // [B, S, axes, half]
  int64_t rows_per_batch, heads, head_dim, axes, half;
  bool interleaved;
  float sign;  // of the sine: -1 rotates back
};

struct Dropout {
  const float* x;
  float* out;  // [B, S, D]
  const int64_t* sample_ids;
  int64_t rows_per_batch, features, position_offset, feature_offset;
  uint64_t seed;
  double p;
};

struct Norm {
  const float *x, *update;     // [R, D]; update: null without
  const float *weight, *bias;  // [D]; bias: null without
  float *sum, *out;            // [R, D]; sum: null without an update
  float *mean, *inverse;       // [R]; mean: null unless centred (LayerNorm)
  int64_t width;
  float eps, weight_offset, residual_scale;
  bool drops;
  Dropout dropout;  // of update, to sum
};

struct NormGradient {
  const float *dout, *dsum, *sum;    // [R, D]; dsum: null without
  const float* weight;               // [D]
  const float *mean, *inverse;       // [R]; mean: null unless centred
  float *dx, *dupdate;               // [R, D]; dupdate: null where it is dx
  float *weight_parts, *bias_parts;  // [chunks, D]; bias_parts: null without a bias
  int64_t num_rows, width, chunk_rows;
  float weight_offset, residual_scale;
  bool drops;
  Dropout dropout;  // of dupdate, to itself
};

struct ActivationRows {
  Activation kind;
  const float *up, *gate;            // [R, F]; gate: null without
  const float *up_bias, *gate_bias;  // [F]; null without
  float* out;                        // [R, F]; forward only, what follows: of the gradient
  const float* dout;                 // [R, F]
  float *dup, *dgate;                // [R, F]
  float *up_parts, *gate_parts;      // [chunks, F]; null without the bias
  int64_t num_rows, width, chunk_rows;
};

// One query row a sequence over keys and values in blocks.
struct PagedAttention {
  const float *q, *k, *v;      // [B, N, H]; pools [blocks, G, block rows, H]
  const int32_t* tables;       // [B, table size]: the block of each run of keys
  const int32_t *start, *end;  // [B]
  const float* bias;           // [N, most keys] by distance, a row's last key last; null without
  float* out;                  // [B, N, H]
  int64_t batch, heads, groups, head_dim, block_rows, table_size, most_keys;
  float scale, score_cap;
};

struct RowProducts {
  const float *x, *weight, *bias;  // [T, D], [O, D], [O] or null
  float* out;                      // [T, O]
  int64_t num_rows, depth, width;
};

struct Draws {
  const float* logits;    // [B, V]
  const double* uniform;  // [B]
  int64_t* tokens;        // [B]
  float* log_probs;       // [B]
  int64_t width;
  float temperature;
};

struct Kernels {
  const char* name;
  int64_t lanes;
  // Scratch memory of a thread, in floats.
  int64_t (*forward_scratch)(const Attention&);
  int64_t (*backward_scratch)(const AttentionGradient&);
  void (*pack_keys)(const Attention&, int64_t batch, int64_t group, float* k, float* v);
  // Task: (b * N + n) * tiles + query tile.
  void (*attention_forward)(const Attention&, int64_t task, float* scratch);
  // Task: (b * G + g) * chunks + chunk.
  void (*attention_backward)(const AttentionGradient&, int64_t task, float* scratch);
  void (*statistics)(const Rows&, int64_t row);
  void (*gradient)(const Rows&, int64_t row);
  void (*rope)(const Rope&, int64_t first_row, int64_t last_row);
  void (*dropout)(const Dropout&, int64_t row);
  void (*norm)(const Norm&, int64_t row);
  void (*norm_gradient)(const NormGradient&, int64_t chunk);
  void (*activation)(const ActivationRows&, int64_t row);
  void (*activation_gradient)(const ActivationRows&, int64_t chunk);
  int64_t (*paged_scratch)(const PagedAttention&);
  // Task: b * N + n.
  void (*paged_attention)(const PagedAttention&, int64_t task, float* scratch);
  void (*row_products)(const RowProducts&, int64_t first_column, int64_t last_column);
  void (*draw)(const Draws&, int64_t row);
};

const Kernels& portable_kernels();
const Kernels& avx2_kernels();
const Kernels& avx512_kernels();

}  // namespace megalite::cpu
