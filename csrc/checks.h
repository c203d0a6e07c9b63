// Checks of the operators' arguments, with the same messages on every backend: the argument, what
// must hold, what came.
#pragma once

#include <ATen/ATen.h>
#include <ATen/MemoryOverlap.h>
#include <c10/core/ScalarType.h>

#include <optional>
#include <string>
#include <string_view>
#include <tuple>
#include <vector>

#include "activations.h"
#include "mask_plan.h"

namespace megalite {

/// The head dimensions that a backend's attention takes.
struct HeadDims {
  int64_t multiple, largest;
};

struct AttentionTensors {
  const at::Tensor &q, &k, &v, &start, &end, &rows, &keys;
  const std::optional<at::Tensor>& bias;
};

struct AttentionOptions {
  double scale, dropout_p;
  int64_t dropout_seed;
  const std::optional<at::Tensor>& sample_ids;
  int64_t head_offset;
};

inline bool is_narrow(at::ScalarType type) { return type == at::kBFloat16 || type == at::kHalf; }

inline void check_device(const char* op, const char* name, const at::Tensor& x, at::Device device) {
  TORCH_CHECK(x.device() == device, op, " ", name, ": must be on ", device, ", came ", x.device());
}

inline void check_float(const char* op, const char* name, const at::Tensor& x) {
  TORCH_CHECK(x.scalar_type() == at::kFloat || is_narrow(x.scalar_type()), op, " ", name,
              ": must be float32, bfloat16 or float16, came ", x.scalar_type());
}

/// A tensor of one type and shape, anywhere in memory.
inline void check_tensor(const char* op, const char* name, const at::Tensor& x, at::ScalarType type,
                         at::IntArrayRef sizes) {
  TORCH_CHECK(x.scalar_type() == type && x.sizes() == sizes, op, " ", name, ": must be ",
              c10::getDtypeNames(type).first, " ", sizes, ", came ",
              c10::getDtypeNames(x.scalar_type()).first, " ", x.sizes());
}

inline void check_intervals(const at::Tensor& start, const at::Tensor& end, int64_t num_keys) {
  TORCH_CHECK(start.dim() == 2 && start.scalar_type() == at::kInt,
              "attention start: must be int32 [B, Sq], came ", start.scalar_type(), " ",
              start.sizes());
  TORCH_CHECK(end.sizes() == start.sizes() && end.scalar_type() == at::kInt,
              "attention end: must be int32 ", start.sizes(), " like start, came ",
              end.scalar_type(), " ", end.sizes());
  check_device("attention", "end", end, start.device());
  TORCH_CHECK(num_keys >= 0 && num_keys < (int64_t{1} << 31),
              "attention num_keys: must be in [0, 2^31), came ", num_keys);
}

inline void check_heads(const AttentionTensors& t, HeadDims dims) {
  const at::Tensor &q = t.q, &k = t.k, &v = t.v;
  check_float("attention", "q", q);
  TORCH_CHECK(q.dim() == 4, "attention q: must be [B, Sq, N, H], came ", q.sizes());
  TORCH_CHECK(k.dim() == 4 && k.size(0) == q.size(0) && k.size(3) == q.size(3) && k.size(2) > 0 &&
                  q.size(2) % k.size(2) == 0,
              "attention k: must be [", q.size(0), ", Sk, G, ", q.size(3), "] with G dividing ",
              q.size(2), ", came ", k.sizes());
  TORCH_CHECK(v.sizes() == k.sizes(), "attention v: must be ", k.sizes(), " like k, came ",
              v.sizes());
  TORCH_CHECK(k.scalar_type() == q.scalar_type() && v.scalar_type() == q.scalar_type(),
              "attention k, v: must be ", q.scalar_type(), " like q, came ", k.scalar_type(),
              " and ", v.scalar_type());
  const int64_t size = q.size(3);
  TORCH_CHECK(size > 0 && size <= dims.largest && size % dims.multiple == 0,
              "attention q: the head dimension must be ", dims.multiple, " to ", dims.largest,
              " in steps of ", dims.multiple, ", came ", size);
}

inline void check_mask(const AttentionTensors& t) {
  const int64_t batch = t.q.size(0), queries = t.q.size(1), num_keys = t.k.size(1);
  check_tensor("attention", "start", t.start, at::kInt, {batch, queries});
  check_tensor("attention", "end", t.end, at::kInt, {batch, queries});
  check_tensor("attention", "rows", t.rows, at::kInt, {batch, plan_entries(queries), 4});
  check_tensor("attention", "keys", t.keys, at::kInt, {batch, plan_entries(num_keys), 3});
}

inline void check_bias(const AttentionTensors& t) {
  if (!t.bias) return;
  const int64_t distances = t.q.size(1) + t.k.size(1) - 1;
  TORCH_CHECK(t.bias->dim() == 2 && t.bias->size(0) == t.q.size(2) && t.bias->size(1) == distances,
              "attention bias: must be [", t.q.size(2), ", ", distances, "], came ",
              t.bias->sizes());
  check_float("attention", "bias", *t.bias);
  check_device("attention", "bias", *t.bias, t.q.device());
}

inline void check_dropout(const AttentionTensors& t, const AttentionOptions& options) {
  TORCH_CHECK(options.dropout_p >= 0 && options.dropout_p < 1,
              "attention dropout_p: must be in [0, 1), came ", options.dropout_p);
  if (options.dropout_p == 0) return;
  TORCH_CHECK(options.sample_ids && options.sample_ids->numel() == t.q.size(0) &&
                  options.sample_ids->scalar_type() == at::kLong,
              "attention sample_ids: int64 [", t.q.size(0), "] must come with dropout_p > 0");
  check_device("attention", "sample_ids", *options.sample_ids, t.q.device());
}

inline void check_attention(const AttentionTensors& t, const AttentionOptions& options,
                            HeadDims dims) {
  check_heads(t, dims);
  check_mask(t);
  check_bias(t);
  check_dropout(t, options);
  const std::pair<const char*, const at::Tensor&> others[] = {{"k", t.k},         {"v", t.v},
                                                              {"start", t.start}, {"end", t.end},
                                                              {"rows", t.rows},   {"keys", t.keys}};
  for (const auto& [name, x] : others) check_device("attention", name, x, t.q.device());
}

/// The backward pass's arguments beyond those of the forward pass.
inline void check_upstream(const AttentionTensors& t, const at::Tensor& dout, const at::Tensor& out,
                           const at::Tensor& lse) {
  check_tensor("attention_backward", "dout", dout, t.q.scalar_type(), t.q.sizes());
  check_tensor("attention_backward", "out", out, t.q.scalar_type(), t.q.sizes());
  check_tensor("attention_backward", "lse", lse, at::kFloat,
               {t.q.size(0), t.q.size(2), t.q.size(1)});
  const std::pair<const char*, const at::Tensor&> all[] = {
      {"dout", dout}, {"out", out}, {"lse", lse}};
  for (const auto& [name, x] : all) check_device("attention_backward", name, x, t.q.device());
}

inline void check_logits(const at::Tensor& logits, const at::Tensor& labels) {
  check_float("cross_entropy", "logits", logits);
  TORCH_CHECK(logits.dim() == 2 && logits.is_contiguous(),
              "cross_entropy logits: must be contiguous [T, V], came ", logits.sizes(),
              " with strides ", logits.strides());
  TORCH_CHECK(labels.dim() == 1 && labels.size(0) == logits.size(0) &&
                  labels.scalar_type() == at::kLong && labels.is_contiguous(),
              "cross_entropy labels: must be contiguous int64 [", logits.size(0), "], came ",
              labels.scalar_type(), " ", labels.sizes());
  check_device("cross_entropy", "labels", labels, logits.device());
}

inline void check_gradient(const at::Tensor& gradient, const at::Tensor& logits,
                           const at::Tensor& lse, const at::Tensor& upstream) {
  TORCH_CHECK(gradient.sizes() == logits.sizes() && gradient.is_contiguous() &&
                  gradient.scalar_type() == logits.scalar_type(),
              "cross_entropy gradient: must be contiguous ", logits.scalar_type(), " ",
              logits.sizes(), " like the logits, came ", gradient.scalar_type(), " ",
              gradient.sizes());
  const std::pair<const char*, const at::Tensor&> rows[] = {{"lse", lse}, {"upstream", upstream}};
  for (const auto& [name, x] : rows) {
    TORCH_CHECK(x.dim() == 1 && x.size(0) == logits.size(0), "cross_entropy ", name, ": must be [",
                logits.size(0), "], came ", x.sizes());
    check_device("cross_entropy", name, x, logits.device());
  }
  check_device("cross_entropy", "gradient", gradient, logits.device());
}

inline void check_rope(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin) {
  check_float("rope", "x", x);
  TORCH_CHECK(x.dim() == 4, "rope x: must be [B, S, N, H], came ", x.sizes());
  TORCH_CHECK(cos.dim() == 4 && cos.size(0) == x.size(0) && cos.size(1) == x.size(1) &&
                  cos.sizes() == sin.sizes() && 2 * cos.size(2) * cos.size(3) <= x.size(3),
              "rope cos, sin: must be [", x.size(0), ", ", x.size(1),
              ", P, R/(2P)] with R <= ", x.size(3), ", came ", cos.sizes(), " and ", sin.sizes());
  check_device("rope", "cos", cos, x.device());
  check_device("rope", "sin", sin, x.device());
}

/// A tensor to be written in place: no two of its elements share memory.
inline void check_apart(const char* op, const char* name, const at::Tensor& x) {
  TORCH_CHECK(at::has_internal_overlap(x) != at::MemOverlap::Yes, op, " ", name,
              ": each element must have memory of its own to be written in place, came ", x.sizes(),
              " with strides ", x.strides(), "; make it contiguous first");
}

inline void check_hidden_dropout(const at::Tensor& x, double p, const at::Tensor& sample_ids) {
  check_float("dropout", "x", x);
  TORCH_CHECK(x.dim() == 3, "dropout x: must be [B, S, D], came ", x.sizes());
  check_tensor("dropout", "sample_ids", sample_ids, at::kLong, {x.size(0)});
  check_device("dropout", "sample_ids", sample_ids, x.device());
  TORCH_CHECK(p >= 0 && p < 1, "dropout p: must be in [0, 1), came ", p);
}

/// What a norm reads: rows [..., D] and, of the same shape, what is added to them; weights [D].
struct NormTensors {
  const at::Tensor& x;
  const std::optional<at::Tensor>& more;
  const at::Tensor& weight;
  const std::optional<at::Tensor>& bias;
};

inline void check_norm(const NormTensors& t, double p,
                       const std::optional<at::Tensor>& sample_ids) {
  check_float("add_norm", "x", t.x);
  TORCH_CHECK(t.x.dim() > 0, "add_norm x: must be [..., D], came a number");
  const at::IntArrayRef width = t.x.sizes().slice(t.x.dim() - 1);
  check_tensor("add_norm", "weight", t.weight, t.x.scalar_type(), width);
  check_device("add_norm", "weight", t.weight, t.x.device());
  const std::tuple<const char*, const std::optional<at::Tensor>&, at::IntArrayRef> others[] = {
      {"update", t.more, t.x.sizes()}, {"bias", t.bias, width}};
  for (const auto& [name, tensor, sizes] : others) {
    if (!tensor) continue;
    check_tensor("add_norm", name, *tensor, t.x.scalar_type(), sizes);
    check_device("add_norm", name, *tensor, t.x.device());
  }
  TORCH_CHECK(p >= 0 && p < 1, "add_norm dropout_p: must be in [0, 1), came ", p);
  if (p == 0) return;
  TORCH_CHECK(t.x.dim() == 3, "add_norm x: must be [B, S, D] for dropout, came ", t.x.sizes());
  TORCH_CHECK(sample_ids, "add_norm sample_ids: must be given for dropout");
  check_tensor("add_norm", "sample_ids", *sample_ids, at::kLong, {t.x.size(0)});
  check_device("add_norm", "sample_ids", *sample_ids, t.x.device());
}

inline void check_norm_gradient(const at::Tensor& dout, const at::Tensor& sum,
                                const at::Tensor& mean, const at::Tensor& inverse) {
  check_tensor("add_norm_backward", "dout", dout, sum.scalar_type(), sum.sizes());
  check_device("add_norm_backward", "dout", dout, sum.device());
  const at::IntArrayRef rows = sum.sizes().slice(0, sum.dim() - 1);
  check_tensor("add_norm_backward", "inverse", inverse, at::kFloat, rows);
  check_device("add_norm_backward", "inverse", inverse, sum.device());
  if (mean.dim() == 1 && mean.size(0) == 0) return;  // not centred
  check_tensor("add_norm_backward", "mean", mean, at::kFloat, rows);
  check_device("add_norm_backward", "mean", mean, sum.device());
}

/// What an activation reads: up and, of the same shape, the gate, [..., F]; their biases [F].
struct ActivationTensors {
  const at::Tensor& up;
  const std::optional<at::Tensor>&gate, &up_bias, &gate_bias;
};

inline void check_activation(const ActivationTensors& t) {
  check_float("activation", "up", t.up);
  TORCH_CHECK(t.up.dim() > 0, "activation up: must be [..., F], came a number");
  TORCH_CHECK(t.gate || !t.gate_bias, "activation gate_bias: needs a gate, came without");
  const at::IntArrayRef width = t.up.sizes().slice(t.up.dim() - 1);
  const std::tuple<const char*, const std::optional<at::Tensor>&, at::IntArrayRef> others[] = {
      {"gate", t.gate, t.up.sizes()},
      {"up_bias", t.up_bias, width},
      {"gate_bias", t.gate_bias, width}};
  for (const auto& [name, tensor, sizes] : others) {
    if (!tensor) continue;
    check_tensor("activation", name, *tensor, t.up.scalar_type(), sizes);
    check_device("activation", name, *tensor, t.up.device());
  }
}

struct PagedTensors {
  const at::Tensor &q, &k, &v, &tables, &start, &end;
  const std::optional<at::Tensor>& bias;
};

/// All but q are contiguous.
inline void check_paged(const PagedTensors& t, int64_t most_keys) {
  constexpr const char* kOp = "paged_attention";
  const at::Tensor &q = t.q, &k = t.k;
  check_float(kOp, "q", q);
  TORCH_CHECK(q.dim() == 3, kOp, " q: must be [B, N, H], came ", q.sizes());
  TORCH_CHECK(k.dim() == 4 && k.size(1) > 0 && q.size(1) % k.size(1) == 0 && k.size(2) > 0, kOp,
              " k: must be [blocks, G, rows, H] with G dividing ", q.size(1), ", came ", k.sizes());
  TORCH_CHECK(t.tables.dim() == 2, kOp, " tables: must be [B, T], came ", t.tables.sizes());
  TORCH_CHECK(most_keys >= 0 && most_keys < (int64_t{1} << 31), kOp,
              " most_keys: must be in [0, 2^31), came ", most_keys);
  const int64_t batch = q.size(0);
  const std::tuple<const char*, const at::Tensor&, at::ScalarType, std::vector<int64_t>> others[] =
      {{"k", k, q.scalar_type(), {k.size(0), k.size(1), k.size(2), q.size(2)}},
       {"v", t.v, q.scalar_type(), k.sizes().vec()},
       {"tables", t.tables, at::kInt, {batch, t.tables.size(1)}},
       {"start", t.start, at::kInt, {batch}},
       {"end", t.end, at::kInt, {batch}}};
  const auto check = [&](const char* name, const at::Tensor& x, at::ScalarType type,
                         at::IntArrayRef sizes) {
    check_tensor(kOp, name, x, type, sizes);
    check_device(kOp, name, x, q.device());
    TORCH_CHECK(x.is_contiguous(), kOp, " ", name, ": must be contiguous, came strides ",
                x.strides());
  };
  for (const auto& [name, tensor, type, sizes] : others) check(name, tensor, type, sizes);
  if (t.bias) check("bias", *t.bias, at::kFloat, {q.size(1), most_keys});
}

inline void check_ids(const at::Tensor& ids, at::Device device) {
  TORCH_CHECK(ids.scalar_type() == at::kLong, "embedding ids: must be int64, came ",
              ids.scalar_type());
  check_device("embedding", "ids", ids, device);
}

inline void check_embedding(const at::Tensor& weight, const at::Tensor& ids) {
  check_float("embedding", "weight", weight);
  TORCH_CHECK(weight.dim() == 2, "embedding weight: must be [V, D], came ", weight.sizes());
  check_ids(ids, weight.device());
}

inline std::vector<int64_t> embedded_sizes(const at::Tensor& ids, int64_t width) {
  std::vector<int64_t> sizes = ids.sizes().vec();
  sizes.push_back(width);
  return sizes;
}

inline void check_embedding_gradient(const at::Tensor& dout, const at::Tensor& ids) {
  check_float("embedding_backward", "dout", dout);
  check_ids(ids, dout.device());
  TORCH_CHECK(dout.dim() == ids.dim() + 1 && dout.sizes().slice(0, ids.dim()) == ids.sizes(),
              "embedding_backward dout: must be [..., D] for ids ", ids.sizes(), ", came ",
              dout.sizes());
}

inline Activation activation_called(std::string_view name) {
  if (name == "relu") return Activation::relu;
  if (name == "gelu") return Activation::gelu;
  if (name == "gelu_tanh") return Activation::gelu_tanh;
  TORCH_CHECK(name == "silu", "activation kind: must be relu, gelu, gelu_tanh or silu, came ",
              std::string(name));
  return Activation::silu;
}

}  // namespace megalite
