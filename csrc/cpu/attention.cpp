// Attention on the CPU: checks, memory and threads around the kernels.
#include <torch/library.h>

#include <optional>
#include <tuple>

#include "checks.h"
#include "cpu/instruction_set.h"
#include "cpu/threads.h"

namespace megalite::cpu {
namespace {

using at::Tensor;

/// The arguments that attention and its gradient share, and the tensors that own their memory.
struct Call {
  Attention p = {};
  Tensor q, k, v, start, end, rows, keys, bias, sample_ids;
};

void set_bias(Call& c, const std::optional<Tensor>& bias) {
  Attention& p = c.p;
  p.bias_row = p.queries + p.num_keys - 1 + kTile;
  if (!bias) return;
  c.bias = at::constant_pad_nd(bias->to(at::kFloat).flip(1), {0, kTile}).contiguous();
  p.reversed_bias = c.bias.data_ptr<float>();
}

Call make_call(const AttentionTensors& t, const AttentionOptions& options) {
  check_attention(t, options, {1, 512});
  const Tensor &q = t.q, &k = t.k, &v = t.v;
  Call c;
  c.q = widen(q), c.k = widen(k), c.v = widen(v);
  c.start = t.start.contiguous(), c.end = t.end.contiguous();
  c.rows = t.rows.contiguous(), c.keys = t.keys.contiguous();
  Attention& p = c.p;
  p.batch = q.size(0), p.queries = q.size(1), p.heads = q.size(2), p.head_dim = q.size(3);
  p.num_keys = k.size(1), p.groups = k.size(2);
  p.q = strided(c.q), p.k = strided(c.k), p.v = strided(c.v);
  p.start = c.start.data_ptr<int32_t>(), p.end = c.end.data_ptr<int32_t>();
  p.rows = c.rows.data_ptr<int32_t>(), p.keys = c.keys.data_ptr<int32_t>();
  p.scale = options.scale, p.dropout_p = options.dropout_p;
  p.dropout_seed = options.dropout_seed, p.head_offset = options.head_offset;
  if (p.dropout_p > 0) {
    c.sample_ids = options.sample_ids->contiguous();
    p.sample_ids = c.sample_ids.data_ptr<int64_t>();
  }
  set_bias(c, t.bias);
  return c;
}

int64_t padded(int64_t size) {
  const int64_t lanes = kernels().lanes;
  return (size + lanes - 1) / lanes * lanes;
}

/// Copy the keys and values of each head to contiguous memory, unless there are too few queries for
/// that to pay.
Tensor pack(Attention& p) {
  constexpr int64_t kFewQueries = 32;
  if (p.queries < kFewQueries && p.head_dim % kernels().lanes == 0) return {};
  const int64_t stride = p.num_keys * padded(p.head_dim) + (p.num_keys + 16) / 16 * 16;
  const Tensor memory = new_floats({2, p.batch, p.groups, stride});
  float* const k = memory.data_ptr<float>();
  float* const v = k + memory.stride(0);
  each(p.batch * p.groups, [&](int64_t i) {
    kernels().pack_keys(p, i / p.groups, i % p.groups, k + i * stride, v + i * stride);
  });
  p.packed_k = k, p.packed_v = v, p.packed_stride = stride;
  return memory;
}

std::tuple<Tensor, Tensor> forward(Call c, at::ScalarType type) {
  Attention& p = c.p;
  Tensor out = new_floats({p.batch, p.queries, p.heads, p.head_dim});
  Tensor lse = new_floats({p.batch, p.heads, p.queries});
  p.out = strided(out), p.lse = lse.data_ptr<float>();
  const Tensor packed = pack(p);
  const int64_t tiles = (p.queries + kTile - 1) / kTile;
  each_with_scratch(p.batch * p.heads * tiles, kernels().forward_scratch(p),
                    [&](int64_t i, float* scratch) { kernels().attention_forward(p, i, scratch); });
  return {out.to(type), lse};
}

std::tuple<Tensor, Tensor> attention(const Tensor& q, const Tensor& k, const Tensor& v,
                                     const Tensor& start, const Tensor& end, const Tensor& rows,
                                     const Tensor& keys, const std::optional<Tensor>& bias,
                                     double scale, double dropout_p, int64_t dropout_seed,
                                     const std::optional<Tensor>& sample_ids, int64_t head_offset) {
  const Call c = make_call({q, k, v, start, end, rows, keys, bias},
                           {scale, dropout_p, dropout_seed, sample_ids, head_offset});
  return forward(c, q.scalar_type());
}

/// The call with a cap of its scores.
Call capped(Call c, double score_cap) {
  TORCH_CHECK(score_cap > 0, "capped_attention score_cap: must be positive, came ", score_cap);
  c.p.score_cap = static_cast<float>(score_cap);
  return c;
}

std::tuple<Tensor, Tensor> capped_attention(const Tensor& q, const Tensor& k, const Tensor& v,
                                            const Tensor& start, const Tensor& end,
                                            const Tensor& rows, const Tensor& keys, double scale,
                                            double dropout_p, int64_t dropout_seed,
                                            const std::optional<Tensor>& sample_ids,
                                            int64_t head_offset, double score_cap) {
  const Call c = make_call({q, k, v, start, end, rows, keys, std::nullopt},
                           {scale, dropout_p, dropout_seed, sample_ids, head_offset});
  return forward(capped(c, score_cap), q.scalar_type());
}

/// Chunks of keys that run in parallel when there are few heads; a function of the shape only.
int64_t key_chunks(const Attention& p) {
  const int64_t blocks = std::max<int64_t>(1, (p.num_keys + kTile - 1) / kTile);
  const int64_t heads = std::max<int64_t>(1, p.batch * p.groups);
  return std::min(blocks, std::max<int64_t>(1, 8 / heads));
}

/// The upstream gradient and what the forward pass gave.
struct Upstream {
  const Tensor &dout, &out, &lse;
};

std::tuple<Tensor, Tensor, Tensor, Tensor> backward(Call c, const AttentionTensors& tensors,
                                                    const Upstream& up, bool has_dbias) {
  check_upstream(tensors, up.dout, up.out, up.lse);
  const Tensor wide_out = widen(up.out), wide_dout = widen(up.dout), lse_c = up.lse.contiguous();
  AttentionGradient g = {};
  Attention& p = c.p;
  p.out = strided(wide_out), p.lse = lse_c.data_ptr<float>();
  g.chunks = key_chunks(p);
  g.chunk_keys = ((p.num_keys + g.chunks - 1) / g.chunks + kTile - 1) / kTile * kTile;
  g.chunks =
      std::max<int64_t>(1, (p.num_keys + g.chunk_keys - 1) / std::max<int64_t>(g.chunk_keys, 1));
  const auto options = c.q.options();
  Tensor dq = new_floats({g.chunks, p.batch, p.queries, p.heads, p.head_dim});
  Tensor dk = new_floats({p.batch, p.num_keys, p.groups, p.head_dim});
  Tensor dv = new_floats({p.batch, p.num_keys, p.groups, p.head_dim});
  Tensor dbias = at::empty({0}, options);
  if (has_dbias) dbias = at::zeros({g.chunks, p.batch, p.heads, p.bias_row}, options);
  g.forward = p;
  g.dout = strided(wide_dout), g.dk = strided(dk), g.dv = strided(dv);
  g.dq = dq.data_ptr<float>();
  g.dbias_reversed = has_dbias ? dbias.data_ptr<float>() : nullptr;
  each_with_scratch(
      p.batch * p.groups * g.chunks, kernels().backward_scratch(g),
      [&](int64_t i, float* scratch) { kernels().attention_backward(g, i, scratch); });
  if (has_dbias)
    dbias = dbias.sum(at::IntArrayRef{0, 1}).slice(1, 0, p.queries + p.num_keys - 1).flip(1);
  const auto type = tensors.q.scalar_type();
  dq = g.chunks == 1 ? dq.squeeze(0) : dq.sum(0);
  return {dq.to(type), dk.to(type), dv.to(type), dbias};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> attention_backward(
    const Tensor& dout, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& out,
    const Tensor& lse, const Tensor& start, const Tensor& end, const Tensor& rows,
    const Tensor& keys, const std::optional<Tensor>& bias, double scale, double dropout_p,
    int64_t dropout_seed, const std::optional<Tensor>& sample_ids, int64_t head_offset,
    bool needs_dbias) {
  const AttentionTensors tensors = {q, k, v, start, end, rows, keys, bias};
  const Call c = make_call(tensors, {scale, dropout_p, dropout_seed, sample_ids, head_offset});
  return backward(c, tensors, {dout, out, lse}, needs_dbias && bias);
}

std::tuple<Tensor, Tensor, Tensor> capped_attention_backward(
    const Tensor& dout, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& out,
    const Tensor& lse, const Tensor& start, const Tensor& end, const Tensor& rows,
    const Tensor& keys, double scale, double dropout_p, int64_t dropout_seed,
    const std::optional<Tensor>& sample_ids, int64_t head_offset, double score_cap) {
  const std::optional<Tensor> no_bias;
  const AttentionTensors tensors = {q, k, v, start, end, rows, keys, no_bias};
  const Call c = make_call(tensors, {scale, dropout_p, dropout_seed, sample_ids, head_offset});
  const auto [dq, dk, dv, dbias] = backward(capped(c, score_cap), tensors, {dout, out, lse}, false);
  return {dq, dk, dv};
}

}  // namespace

TORCH_LIBRARY_IMPL(megalite, CPU, m) {
  m.impl("attention", attention);
  m.impl("attention_backward", attention_backward);
  m.impl("capped_attention", capped_attention);
  m.impl("capped_attention_backward", capped_attention_backward);
}

}  // namespace megalite::cpu
