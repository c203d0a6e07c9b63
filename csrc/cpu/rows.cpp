// Logits of cross-entropy, RoPE and dropout on the CPU: checks, memory and threads around the
// kernels.
#include <torch/library.h>

#include "checks.h"
#include "cpu/instruction_set.h"
#include "cpu/threads.h"

namespace megalite::cpu {
namespace {

using at::Tensor;

constexpr size_t kCacheBytes = size_t{64} << 20;  // more than caches hold

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
  // A gradient too large for the caches is written with non-temporal stores, which don't read the
  // cache lines that they write.
  const bool is_apart = gradient.data_ptr() != logits.data_ptr();
  p.streams = is_apart && gradient.nbytes() >= kCacheBytes;
  if (is_apart) prefer_huge_pages(gradient);
  const Tensor lse_c = lse.to(at::kFloat).contiguous();
  const Tensor upstream_c = upstream.to(at::kFloat).contiguous();
  p.gradient = gradient.data_ptr<float>(), p.lse = lse_c.data_ptr<float>();
  p.upstream = upstream_c.data_ptr<float>(), p.vocabulary = vocabulary;
  p.label_smoothing = label_smoothing, p.z_loss = z_loss;
  each_row(p.num_rows, p.width, [&](int64_t i) { kernels().gradient(p, i); });
}

/// Rotate x, fp32, to out, which may be x.
void rotate(const Tensor& x, const Tensor& out, const Tensor& cos, const Tensor& sin,
            bool interleaved, bool inverse) {
  const Tensor c = cos.to(at::kFloat).contiguous(), s = sin.to(at::kFloat).contiguous();
  Rope p = {};
  p.x = strided(x), p.out = strided(out);
  p.cos = c.data_ptr<float>(), p.sin = s.data_ptr<float>();
  p.rows_per_batch = x.size(1), p.heads = x.size(2), p.head_dim = x.size(3);
  p.axes = cos.size(2), p.half = cos.size(3);
  p.interleaved = interleaved, p.sign = inverse ? -1.0f : 1.0f;
  each_range(x.size(0) * x.size(1), x.size(2) * x.size(3),
             [&](int64_t first, int64_t last) { kernels().rope(p, first, last); });
}

Tensor rope(const Tensor& x, const Tensor& cos, const Tensor& sin, bool interleaved, bool inverse) {
  check_rope(x, cos, sin);
  const Tensor out = new_floats(x.sizes());
  rotate(widen(x), out, cos, sin, interleaved, inverse);
  return out.to(x.scalar_type());
}

void rope_in_place(const Tensor& x, const Tensor& cos, const Tensor& sin, bool interleaved,
                   bool inverse) {
  check_rope(x, cos, sin);
  check_apart("rope", "x", x);
  const Tensor wide = widen(x);
  rotate(wide, wide, cos, sin, interleaved, inverse);
  if (wide.data_ptr() != x.data_ptr()) x.copy_(wide);
}

Tensor dropout(const Tensor& x, double p, int64_t seed, const Tensor& sample_ids,
               int64_t position_offset, int64_t feature_offset) {
  check_hidden_dropout(x, p, sample_ids);
  const Tensor wide = x.to(at::kFloat).contiguous(), ids = sample_ids.contiguous();
  Tensor out = new_floats(x.sizes());
  const Dropout d = dropout_of(p, seed, ids, wide, out, position_offset, feature_offset);
  each_row(x.size(0) * x.size(1), x.size(2), [&](int64_t i) { kernels().dropout(d, i); });
  return out.to(x.scalar_type());
}

}  // namespace

TORCH_LIBRARY_IMPL(megalite, CPU, m) {
  m.impl("logit_statistics", logit_statistics);
  m.impl("logit_gradient", logit_gradient);
  m.impl("rope", rope);
  m.impl("rope_", rope_in_place);
  m.impl("dropout", dropout);
}

}  // namespace megalite::cpu
