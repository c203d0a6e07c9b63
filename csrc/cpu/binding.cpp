// The CPU backend of megalite's operators: checks, memory and threads around csrc/cpu's kernels.
#include <ATen/Parallel.h>
#include <ATen/ATen.h>
#include <torch/library.h>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <atomic>
#include <cmath>
#include <optional>
#include <tuple>

#include "checks.h"
#include "cpu/kernels.h"

namespace megalite::cpu {
namespace {

using at::Tensor;

const Kernels& kernels() {
  static const Kernels& chosen = []() -> const Kernels& {
#if defined(__x86_64__)
    const char* forced = std::getenv("MEGALITE_CPU_ISA");
    const std::string isa = forced ? forced : "";
    __builtin_cpu_init();
    if (isa.empty() || isa == "avx512")
      if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
          __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq"))
        return avx512_kernels();
    if (isa != "portable")
      if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return avx2_kernels();
#endif
    return portable_kernels();
  }();
  return chosen;
}

// Ask for huge pages for memory that is about to be written for the first time: faults of small
// pages cost more than the arithmetic of a pass over a large tensor.
void prefer_huge_pages(const Tensor& x) {
#if defined(__linux__)
  constexpr uintptr_t kPage = 4096;
  const uintptr_t first = (reinterpret_cast<uintptr_t>(x.data_ptr()) + kPage - 1) / kPage * kPage;
  const uintptr_t last = (reinterpret_cast<uintptr_t>(x.data_ptr()) + x.nbytes()) / kPage * kPage;
  if (last > first + (uintptr_t{2} << 20))
    madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
}

constexpr size_t kStreamBytes = size_t{64} << 20;

// Uninitialised fp32 memory.
Tensor new_floats(at::IntArrayRef sizes) {
  Tensor x = at::empty(sizes, at::kFloat);
  prefer_huge_pages(x);
  return x;
}

// Run task(i) for i < count on all threads, whoever is free taking the next.
template <class Task>
void each(int64_t count, const Task& task) {
  std::atomic<int64_t> next{0};
  const int64_t workers = std::min<int64_t>(count, at::get_num_threads());
  at::parallel_for(0, workers, 1, [&](int64_t, int64_t) {
    for (int64_t i; (i = next.fetch_add(1)) < count;) task(i);
  });
}

// The same with scratch memory for each thread.
template <class Task>
void each_with_scratch(int64_t count, int64_t floats, const Task& task) {
  std::atomic<int64_t> next{0};
  const int64_t workers = std::min<int64_t>(count, at::get_num_threads());
  at::parallel_for(0, workers, 1, [&](int64_t, int64_t) {
    const Tensor scratch = new_floats({floats});
    for (int64_t i; (i = next.fetch_add(1)) < count;) task(i, scratch.data_ptr<float>());
  });
}

// Rows are many and short: static shares [first, last).
template <class Task>
void each_run(int64_t count, int64_t floats_a_row, const Task& task) {
  const int64_t grain = std::max<int64_t>(1, 16384 / std::max<int64_t>(1, floats_a_row));
  at::parallel_for(0, count, grain, task);
}
template <class Task>
void each_row(int64_t count, int64_t floats_a_row, const Task& task) {
  each_run(count, floats_a_row, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) task(i);
  });
}

// fp32 with a contiguous last dimension.
Tensor widen(const Tensor& x) {
  const Tensor wide = x.to(at::kFloat);
  return wide.stride(-1) == 1 ? wide : wide.contiguous();
}

Strided strided(const Tensor& x) {
  return {x.data_ptr<float>(), x.stride(0), x.stride(1), x.stride(2)};
}

void check_bounds(const Tensor& start, const Tensor& end, int64_t num_keys) {
  const Tensor starts = start.contiguous(), ends = end.contiguous();
  const int32_t *first = starts.data_ptr<int32_t>(), *last = ends.data_ptr<int32_t>();
  for (int64_t i = 0; i < start.numel(); ++i)
    TORCH_CHECK(0 <= first[i] && first[i] <= last[i] && last[i] <= num_keys,
                "attention start, end: 0 <= start <= end <= ", num_keys, " keys must hold, came [",
                first[i], ", ", last[i], ") in row ", i % start.size(1), " of sequence ",
                i / start.size(1));
}

std::tuple<Tensor, Tensor> mask_plan(const Tensor& start, const Tensor& end, int64_t num_keys) {
  check_intervals(start, end, num_keys);
  check_bounds(start, end, num_keys);
  const int64_t batch = start.size(0), queries = start.size(1);
  const int64_t row_tiles = (queries + kPlanTile - 1) / kPlanTile;
  const int64_t key_tiles = (num_keys + kPlanTile - 1) / kPlanTile;
  const Tensor starts = start.contiguous(), ends = end.contiguous();
  Tensor rows = at::empty({batch, row_tiles, 4}, start.options());
  Tensor keys = at::zeros({batch, key_tiles, 3}, start.options());
  for (int64_t b = 0; b < batch; ++b) {
    const int32_t* first = starts.data_ptr<int32_t>() + b * queries;
    const int32_t* last = ends.data_ptr<int32_t>() + b * queries;
    int32_t* plan = rows.data_ptr<int32_t>() + b * row_tiles * 4;
    for (int64_t t = 0; t < row_tiles; ++t, plan += 4) {
      plan[0] = plan[3] = num_keys, plan[1] = plan[2] = 0;
      for (int64_t i = t * kPlanTile; i < std::min(queries, (t + 1) * kPlanTile); ++i) {
        if (first[i] < last[i]) {
          plan[0] = std::min(plan[0], first[i]);
          plan[1] = std::max(plan[1], last[i]);
        }
        plan[2] = std::max(plan[2], first[i]);
        plan[3] = std::min(plan[3], last[i]);
      }
    }
    int32_t* touched = keys.data_ptr<int32_t>() + b * key_tiles * 3;
    for (int64_t i = 0; i < queries; ++i) {
      if (first[i] >= last[i]) continue;
      for (int64_t t = first[i] / kPlanTile; t * kPlanTile < last[i]; ++t) {
        if (touched[3 * t + 1] == 0) touched[3 * t] = i;
        touched[3 * t + 1] = i + 1;
        const int64_t from = std::max<int64_t>(first[i] - t * kPlanTile, 0);
        const int64_t to = std::min<int64_t>(last[i] - t * kPlanTile, kPlanTile);
        touched[3 * t + 2] |= static_cast<int32_t>((int64_t{1} << to) - (int64_t{1} << from));
      }
    }
  }
  return {rows, keys};
}

// The arguments that attention and its gradient share, and the tensors that keep them alive.
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

// Copy each head's keys and values together, unless few queries would not repay it.
Tensor pack(Attention& p) {
  if (p.queries < 32 && p.head_dim % kernels().lanes == 0) return {};
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

std::tuple<Tensor, Tensor> attention(const Tensor& q, const Tensor& k, const Tensor& v,
                                     const Tensor& start, const Tensor& end, const Tensor& rows,
                                     const Tensor& keys, const std::optional<Tensor>& bias,
                                     double scale, double dropout_p, int64_t dropout_seed,
                                     const std::optional<Tensor>& sample_ids,
                                     int64_t head_offset) {
  Call c = make_call({q, k, v, start, end, rows, keys, bias},
                     {scale, dropout_p, dropout_seed, sample_ids, head_offset});
  Attention& p = c.p;
  Tensor out = new_floats({p.batch, p.queries, p.heads, p.head_dim});
  Tensor lse = new_floats({p.batch, p.heads, p.queries});
  p.out = strided(out), p.lse = lse.data_ptr<float>();
  const Tensor packed = pack(p);
  const int64_t tiles = (p.queries + kTile - 1) / kTile;
  each_with_scratch(p.batch * p.heads * tiles, kernels().forward_scratch(p),
                    [&](int64_t i, float* scratch) { kernels().attention_forward(p, i, scratch); });
  return {out.to(q.scalar_type()), lse};
}

// Chunks of keys that run apart when there are few heads: a function of the shape alone.
int64_t key_chunks(const Attention& p) {
  const int64_t blocks = std::max<int64_t>(1, (p.num_keys + kTile - 1) / kTile);
  const int64_t heads = std::max<int64_t>(1, p.batch * p.groups);
  return std::min(blocks, std::max<int64_t>(1, 8 / heads));
}

std::tuple<Tensor, Tensor, Tensor, Tensor> attention_backward(
    const Tensor& dout, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& out,
    const Tensor& lse, const Tensor& start, const Tensor& end, const Tensor& rows,
    const Tensor& keys, const std::optional<Tensor>& bias, double scale, double dropout_p,
    int64_t dropout_seed, const std::optional<Tensor>& sample_ids, int64_t head_offset,
    bool needs_dbias) {
  const AttentionTensors tensors = {q, k, v, start, end, rows, keys, bias};
  Call c = make_call(tensors, {scale, dropout_p, dropout_seed, sample_ids, head_offset});
  check_upstream(tensors, dout, out, lse);
  const Tensor wide_out = widen(out), wide_dout = widen(dout), lse_c = lse.contiguous();
  AttentionGradient g = {};
  Attention& p = c.p;
  p.out = strided(wide_out), p.lse = lse_c.data_ptr<float>();
  g.chunks = key_chunks(p);
  g.chunk_keys = ((p.num_keys + g.chunks - 1) / g.chunks + kTile - 1) / kTile * kTile;
  g.chunks = std::max<int64_t>(1, (p.num_keys + g.chunk_keys - 1) / std::max<int64_t>(g.chunk_keys, 1));
  const auto options = c.q.options();
  Tensor dq = new_floats({g.chunks, p.batch, p.queries, p.heads, p.head_dim});
  Tensor dk = new_floats({p.batch, p.num_keys, p.groups, p.head_dim});
  Tensor dv = new_floats({p.batch, p.num_keys, p.groups, p.head_dim});
  Tensor dbias = at::empty({0}, options);
  const bool has_dbias = needs_dbias && bias;
  if (has_dbias) dbias = at::zeros({g.chunks, p.batch, p.heads, p.bias_row}, options);
  g.forward = p;
  g.dout = strided(wide_dout), g.dk = strided(dk), g.dv = strided(dv);
  g.dq = dq.data_ptr<float>();
  g.dbias_reversed = has_dbias ? dbias.data_ptr<float>() : nullptr;
  each_with_scratch(p.batch * p.groups * g.chunks, kernels().backward_scratch(g),
                    [&](int64_t i, float* scratch) { kernels().attention_backward(g, i, scratch); });
  if (has_dbias) dbias = dbias.sum(at::IntArrayRef{0, 1}).slice(1, 0, p.queries + p.num_keys - 1).flip(1);
  const auto type = q.scalar_type();
  dq = g.chunks == 1 ? dq.squeeze(0) : dq.sum(0);
  return {dq.to(type), dk.to(type), dv.to(type), dbias};
}

Rows rows_of(const Tensor& logits, const Tensor& labels, int64_t offset) {
  check_logits(logits, labels);
  TORCH_CHECK(logits.scalar_type() == at::kFloat,
              "cross_entropy logits: must be float32 on the CPU, came ", logits.scalar_type());
  Rows p = {};
  p.logits = logits.data_ptr<float>(), p.labels = labels.data_ptr<int64_t>();
  p.num_rows = logits.size(0), p.width = logits.size(1), p.offset = offset;
  return p;
}

Tensor logit_statistics(const Tensor& logits, const Tensor& labels, int64_t offset) {
  Rows p = rows_of(logits, labels, offset);
  Tensor statistics = at::empty({5, p.num_rows}, logits.options());
  p.statistics = statistics.data_ptr<float>();
  each_row(p.num_rows, p.width, [&](int64_t i) { kernels().statistics(p, i); });
  return statistics;
}

void logit_gradient(const Tensor& gradient, const Tensor& logits, const Tensor& lse,
                    const Tensor& labels, const Tensor& upstream, int64_t offset,
                    int64_t vocabulary, double label_smoothing, double z_loss) {
  Rows p = rows_of(logits, labels, offset);
  check_gradient(gradient, logits, lse, upstream);
  // Memory that no cache would hold until it is read is not read before it is written.
  const bool is_apart = gradient.data_ptr() != logits.data_ptr();
  p.streams = is_apart && gradient.nbytes() >= kStreamBytes;
  if (is_apart) prefer_huge_pages(gradient);
  const Tensor lse_c = lse.to(at::kFloat).contiguous();
  const Tensor upstream_c = upstream.to(at::kFloat).contiguous();
  p.gradient = gradient.data_ptr<float>(), p.lse = lse_c.data_ptr<float>();
  p.upstream = upstream_c.data_ptr<float>(), p.vocabulary = vocabulary;
  p.label_smoothing = label_smoothing, p.z_loss = z_loss;
  each_row(p.num_rows, p.width, [&](int64_t i) { kernels().gradient(p, i); });
}

// Turn x, fp32, to out, which may be x.
void turn(const Tensor& x, const Tensor& out, const Tensor& cos, const Tensor& sin,
          bool interleaved, bool inverse) {
  const Tensor c = cos.to(at::kFloat).contiguous(), s = sin.to(at::kFloat).contiguous();
  const Rope p = {strided(x), strided(out), c.data_ptr<float>(), s.data_ptr<float>(), x.size(1),
                  x.size(2), x.size(3), cos.size(2), cos.size(3), interleaved,
                  inverse ? -1.0f : 1.0f};
  each_run(x.size(0) * x.size(1), x.size(2) * x.size(3),
           [&](int64_t first, int64_t last) { kernels().rope(p, first, last); });
}

Tensor rope(const Tensor& x, const Tensor& cos, const Tensor& sin, bool interleaved,
            bool inverse) {
  check_rope(x, cos, sin);
  const Tensor out = new_floats(x.sizes());
  turn(widen(x), out, cos, sin, interleaved, inverse);
  return out.to(x.scalar_type());
}

void rope_in_place(const Tensor& x, const Tensor& cos, const Tensor& sin, bool interleaved,
                   bool inverse) {
  check_rope(x, cos, sin);
  check_apart("rope", "x", x);
  const Tensor wide = widen(x);
  turn(wide, wide, cos, sin, interleaved, inverse);
  if (wide.data_ptr() != x.data_ptr()) x.copy_(wide);
}

Tensor dropout(const Tensor& x, double p, int64_t seed, const Tensor& sample_ids,
               int64_t position_offset, int64_t feature_offset) {
  check_hidden_dropout(x, p, sample_ids);
  const Tensor wide = x.to(at::kFloat).contiguous(), ids = sample_ids.contiguous();
  Tensor out = new_floats(x.sizes());
  const Dropout d = {wide.data_ptr<float>(), out.data_ptr<float>(), ids.data_ptr<int64_t>(),
                     x.size(1), x.size(2), position_offset, feature_offset,
                     static_cast<uint64_t>(seed), p};
  each_row(x.size(0) * x.size(1), x.size(2), [&](int64_t i) { kernels().dropout(d, i); });
  return out.to(x.scalar_type());
}

}  // namespace

TORCH_LIBRARY_IMPL(megalite, CPU, m) {
  m.impl("mask_plan", mask_plan);
  m.impl("attention", attention);
  m.impl("attention_backward", attention_backward);
  m.impl("logit_statistics", logit_statistics);
  m.impl("logit_gradient", logit_gradient);
  m.impl("rope", rope);
  m.impl("rope_", rope_in_place);
  m.impl("dropout", dropout);
}

}  // namespace megalite::cpu
