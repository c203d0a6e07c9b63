// Attention and the mask's plan on the CUDA backend, and with MEGALITE_SIMT on the emulator:
// checks, memory and the choice of kernels around those of csrc/cuda/attention.
#include <torch/library.h>

#include <limits>
#include <optional>
#include <tuple>
#include <type_traits>

#include "checks.h"
#include "cuda/attention/params.cuh"
#include "cuda/binding/tensors.h"
#include "philox.h"

namespace megalite {
namespace {

using at::Tensor;

constexpr HeadDims kHeadDims = {8, 256};  // whole 16-byte vectors; the largest tile

/// The compute capability of the current device, times ten.
int architecture() {
#ifdef MEGALITE_SIMT
  return simt::machine.architecture;
#else
  int device = 0, major = 0, minor = 0;
  require_success(cudaGetDevice(&device), "attention");
  require_success(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device),
                  "attention");
  require_success(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device),
                  "attention");
  return 10 * major + minor;
#endif
}

void check_type(const Tensor& q) {
  const int capability = architecture();
  TORCH_CHECK(capability >= 70,
              "attention: must run on a GPU of compute capability 7.0 or later, came ",
              capability / 10, ".", capability % 10);
  const bool has_type =
      q.scalar_type() == at::kHalf || (q.scalar_type() == at::kBFloat16 && capability >= 80);
  TORCH_CHECK(has_type, "attention q: must be float16 ", capability >= 80 ? "or bfloat16 " : "",
              "on a GPU of compute capability ", capability / 10, ".", capability % 10, ", came ",
              q.scalar_type(), ": cast q, k and v, or choose megalite.ops.backend('reference')");
}

/// The tensor, or a copy whose rows are whole 16-byte vectors.
Tensor with_aligned_rows(const Tensor& x) {
  return x.stride(3) == 1 && has_aligned_rows(x) ? x : x.contiguous();
}

/// The tensors of a call, in the form that the kernels read.
struct Call {
  Tensor q, k, v, start, end, rows, keys, bias, sample_ids;

  Call(const AttentionTensors& t, const AttentionOptions& o)
      : q(with_aligned_rows(t.q)),
        k(with_aligned_rows(t.k)),
        v(with_aligned_rows(t.v)),
        start(t.start.contiguous()),
        end(t.end.contiguous()),
        rows(t.rows.contiguous()),
        keys(t.keys.contiguous()),
        options_(o) {
    if (t.bias) bias = t.bias->to(at::kFloat).contiguous();
    if (o.dropout_p > 0) sample_ids = o.sample_ids->contiguous();
  }

  bool is_empty() const { return q.numel() == 0 || k.numel() == 0; }

  template <class T>
  AttentionParams<T> params(const Tensor& out, const Tensor& lse) const {
    AttentionParams<T> p = {};
    p.batch = static_cast<int>(q.size(0)), p.queries = static_cast<int>(q.size(1));
    p.heads = static_cast<int>(q.size(2)), p.head_dim = static_cast<int>(q.size(3));
    p.keys = static_cast<int>(k.size(1)), p.groups = static_cast<int>(k.size(2));
    p.q = read<T>(q), p.k = read<T>(k), p.v = read<T>(v);
    p.q_strides = strides_of(q), p.k_strides = strides_of(k), p.v_strides = strides_of(v);
    p.out = view<T>(out), p.lse = view<float>(lse);
    p.start = read<int32_t>(start), p.end = read<int32_t>(end);
    p.row_plan = read<int32_t>(rows), p.key_plan = read<int32_t>(keys);
    if (bias.defined()) p.bias = read<float>(bias);
    p.scale = static_cast<float>(options_.scale);
    if (!sample_ids.defined()) return p;
    p.dropout.threshold = keep_threshold(options_.dropout_p);
    p.dropout.scale = static_cast<float>(1.0 / (1.0 - options_.dropout_p));
    p.dropout.seed = static_cast<uint64_t>(options_.dropout_seed);
    p.dropout.sample_ids = read<int64_t>(sample_ids);
    p.dropout.head_offset = static_cast<int>(options_.head_offset);
    return p;
  }

 private:
  AttentionOptions options_;
};

/// Call work with a half or bfloat16, and with whether the kernels are those of sm_70.
template <class Work>
void with_kernels(at::ScalarType type, const Work& work) {
  if (type == at::kBFloat16) {
    work(bfloat16{}, std::false_type{});
  } else if (architecture() >= 80) {
    work(half{}, std::false_type{});
  } else {
    work(half{}, std::true_type{});
  }
}

std::tuple<Tensor, Tensor> plan(const Tensor& start, const Tensor& end, int64_t num_keys) {
  check_intervals(start, end, num_keys);
  const OnDevice guard("attention", "start", start);
  const Tensor starts = start.contiguous(), ends = end.contiguous();
  MaskPlanParams p = {};
  p.batch = static_cast<int>(start.size(0)), p.queries = static_cast<int>(start.size(1));
  p.num_keys = static_cast<int>(num_keys);
  const Tensor rows = at::empty({p.batch, plan_entries(p.queries), 4}, start.options());
  const Tensor keys = at::empty({p.batch, plan_entries(p.num_keys), 3}, start.options());
  p.start = read<int32_t>(starts), p.end = read<int32_t>(ends);
  p.rows = view<int32_t>(rows), p.keys = view<int32_t>(keys);
  mask_plan(p, current_stream());
  return {rows, keys};
}

std::tuple<Tensor, Tensor> attend(const Tensor& q, const Tensor& k, const Tensor& v,
                                  const Tensor& start, const Tensor& end, const Tensor& rows,
                                  const Tensor& keys, const std::optional<Tensor>& bias,
                                  double scale, double dropout_p, int64_t dropout_seed,
                                  const std::optional<Tensor>& sample_ids, int64_t head_offset) {
  const AttentionTensors tensors = {q, k, v, start, end, rows, keys, bias};
  const AttentionOptions options = {scale, dropout_p, dropout_seed, sample_ids, head_offset};
  check_attention(tensors, options, kHeadDims);
  const OnDevice guard("attention", "q", q);
  check_type(q);
  const Call call(tensors, options);
  const Tensor out = at::empty(q.sizes(), q.options());
  const Tensor lse = at::empty({q.size(0), q.size(2), q.size(1)}, q.options().dtype(at::kFloat));
  if (call.is_empty()) {
    out.zero_(), lse.fill_(-std::numeric_limits<float>::infinity());
    return {out, lse};
  }
  with_kernels(q.scalar_type(), [&](auto type, auto is_sm70) {
    const auto p = call.params<decltype(type)>(out, lse);
    if constexpr (is_sm70) {
      attention_forward_sm70(p, current_stream());
    } else {
      attention_forward_sm80(p, current_stream());
    }
  });
  return {out, lse};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> attend_backward(
    const Tensor& dout, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& out,
    const Tensor& lse, const Tensor& start, const Tensor& end, const Tensor& rows,
    const Tensor& keys, const std::optional<Tensor>& bias, double scale, double dropout_p,
    int64_t dropout_seed, const std::optional<Tensor>& sample_ids, int64_t head_offset,
    bool needs_dbias) {
  const AttentionTensors tensors = {q, k, v, start, end, rows, keys, bias};
  const AttentionOptions options = {scale, dropout_p, dropout_seed, sample_ids, head_offset};
  check_attention(tensors, options, kHeadDims);
  check_upstream(tensors, dout, out, lse);
  const OnDevice guard("attention", "q", q);
  check_type(q);
  const Call call(tensors, options);
  const Tensor read_dout = with_aligned_rows(dout), read_out = out.contiguous();
  const Tensor read_lse = lse.contiguous();
  const auto floats = q.options().dtype(at::kFloat);
  const Tensor dq = at::zeros(q.sizes(), q.options()), dk = at::zeros(k.sizes(), q.options());
  const Tensor dv = at::zeros(k.sizes(), q.options());
  const bool has_dbias = needs_dbias && bias;
  const Tensor dbias = at::zeros(has_dbias ? bias->sizes() : at::IntArrayRef({0}), floats);
  if (call.is_empty()) return {dq, dk, dv, dbias};
  const Tensor delta = at::empty(lse.sizes(), floats);
  with_kernels(q.scalar_type(), [&](auto type, auto is_sm70) {
    using T = decltype(type);
    const auto p = call.params<T>(read_out, read_lse);
    AttentionGradients<T> g = {};
    g.dout = read<T>(read_dout), g.dout_strides = strides_of(read_dout);
    g.delta = view<float>(delta);
    g.dq = view<T>(dq), g.dk = view<T>(dk), g.dv = view<T>(dv);
    if (has_dbias) g.dbias = view<float>(dbias);
    int64_t size = 0;
    if constexpr (is_sm70) {
      size = attention_backward_scratch_sm70(p, has_dbias);
    } else {
      size = attention_backward_scratch_sm80(p, has_dbias);
    }
    const Tensor scratch = at::empty({size}, floats);
    g.scratch = view<float>(scratch);
    if constexpr (is_sm70) {
      attention_backward_sm70(p, g, current_stream());
    } else {
      attention_backward_sm80(p, g, current_stream());
    }
  });
  return {dq, dk, dv, dbias};
}

}  // namespace
}  // namespace megalite

#ifdef MEGALITE_SIMT
TORCH_LIBRARY_IMPL(megalite_simt, CPU, m) {
#else
TORCH_LIBRARY_IMPL(megalite, CUDA, m) {
#endif
  m.impl("mask_plan", megalite::plan);
  m.impl("attention", megalite::attend);
  m.impl("attention_backward", megalite::attend_backward);
}
