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

/// Bytes of shared memory that a block of the current device may have.
int shared_limit() {
#ifdef MEGALITE_SIMT
  return simt::machine.shared_limit();
#else
  int device = 0, bytes = 0;
  require_success(cudaGetDevice(&device), "attention");
  require_success(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device),
                  "attention");
  return bytes;
#endif
}

/// The kernels of csrc/cuda/attention that a call runs, by folder.
enum class Kernels { sm70, sm80, sm86 };

Kernels kernels_for(int64_t head_dim, bool is_backward) {
  const int capability = architecture();
  if (capability < 80) return Kernels::sm70;
  const int64_t widest = is_backward ? 64 : 192;  // that sm80's tiles fit into 99 KiB with
  if (head_dim <= widest || shared_limit() >= 163 * 1024) return Kernels::sm80;
  TORCH_CHECK(!is_backward || head_dim <= 192,
              "attention q: the backward pass at head dimensions above 192 needs 145 KiB of shared "
              "memory a block, this GPU (compute capability ",
              capability / 10, ".", capability % 10, ") has ", shared_limit() / 1024,
              ", came head dimension ", head_dim);
  return Kernels::sm86;
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

/// The tensor, or a copy whose rows are whole 16-byte vectors; a contiguous one may begin elsewhere.
Tensor with_aligned_rows(const Tensor& x) {
  if (x.stride(3) == 1 && has_aligned_rows(x)) return x;
  return x.clone(at::MemoryFormat::Contiguous);
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

template <Kernels kernels>
using Chosen = std::integral_constant<Kernels, kernels>;

/// Call work with half or bfloat16, for the kernels of a folder that this build has.
template <class T, class Work>
void with_kernels(Kernels kernels, const Work& work) {
#ifdef MEGALITE_SM70
  if constexpr (std::is_same_v<T, half>) {
    if (kernels == Kernels::sm70) return work(T{}, Chosen<Kernels::sm70>{});
  }
#endif
#ifdef MEGALITE_SM80
  if (kernels == Kernels::sm80) return work(T{}, Chosen<Kernels::sm80>{});
#endif
#ifdef MEGALITE_SM86
  if (kernels == Kernels::sm86) return work(T{}, Chosen<Kernels::sm86>{});
#endif
  const int capability = architecture();
  TORCH_CHECK(false, "attention: this build has no kernels for compute capability ",
              capability / 10, ".", capability % 10,
              ": build it with TORCH_CUDA_ARCH_LIST=", capability / 10, ".", capability % 10,
              " (docs/gpu.md)");
}
template <class Work>
void with_kernels(at::ScalarType type, Kernels kernels, const Work& work) {
  if (type == at::kBFloat16) return with_kernels<bfloat16>(kernels, work);
  return with_kernels<half>(kernels, work);
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
  with_kernels(q.scalar_type(), kernels_for(q.size(3), false), [&](auto type, auto kernels) {
    const auto p = call.params<decltype(type)>(out, lse);
    if constexpr (kernels == Kernels::sm70) {
      attention_forward_sm70(p, current_stream());
    } else if constexpr (kernels == Kernels::sm80) {
      attention_forward_sm80(p, current_stream());
    } else {
      attention_forward_sm86(p, current_stream());
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
  const Tensor read_dout = with_aligned_rows(dout), read_out = with_aligned_rows(out.contiguous());
  const Tensor read_lse = lse.contiguous();
  const auto floats = q.options().dtype(at::kFloat);
  const Tensor dq = at::empty(q.sizes(), q.options()), dk = at::empty(k.sizes(), q.options());
  const Tensor dv = at::empty(k.sizes(), q.options());
  const bool has_dbias = needs_dbias && bias;
  const Tensor dbias = at::empty(has_dbias ? bias->sizes() : at::IntArrayRef({0}), floats);
  if (call.is_empty()) return {dq.zero_(), dk.zero_(), dv.zero_(), dbias.zero_()};
  const Tensor delta = at::empty(lse.sizes(), floats);
  with_kernels(q.scalar_type(), kernels_for(q.size(3), true), [&](auto type, auto kernels) {
    using T = decltype(type);
    const auto p = call.params<T>(read_out, read_lse);
    AttentionGradients<T> g = {};
    g.dout = read<T>(read_dout), g.dout_strides = strides_of(read_dout);
    g.delta = view<float>(delta);
    g.dq = view<T>(dq), g.dk = view<T>(dk), g.dv = view<T>(dv);
    if (has_dbias) g.dbias = view<float>(dbias);
    const auto run = [&](auto scratch_size, auto backward) {
      const Tensor scratch = at::empty({scratch_size(p, has_dbias)}, floats);
      g.scratch = view<float>(scratch);
      backward(p, g, current_stream());
    };
    if constexpr (kernels == Kernels::sm70) {
      run(attention_backward_scratch_sm70, attention_backward_sm70);
    } else if constexpr (kernels == Kernels::sm80) {
      run(attention_backward_scratch_sm80<T>, attention_backward_sm80<T>);
    } else {
      run(attention_backward_scratch_sm86<T>, attention_backward_sm86<T>);
    }
  });
  return {dq, dk, dv, dbias};
}

}  // namespace
}  // namespace megalite

MEGALITE_REGISTER(m) {
  m.impl("mask_plan", megalite::plan);
  m.impl("attention", megalite::attend);
  m.impl("attention_backward", megalite::attend_backward);
}
