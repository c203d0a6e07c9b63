// The operators on rows (logits, RoPE, dropout) on the CUDA backend, and with MEGALITE_SIMT on the
// emulator: checks, memory and launches around the kernels of csrc/cuda/rows.
#include <torch/library.h>

#include "checks.h"
#include "cuda/binding/drops.h"
#include "cuda/binding/tensors.h"
#include "cuda/rows/params.cuh"
#include "schema.h"

namespace megalite {
namespace {

using at::Tensor;

template <class T>
LogitParams<T> logit_params(const Tensor& logits, const Tensor& labels, int64_t offset) {
  LogitParams<T> p = {};
  p.num_rows = logits.size(0), p.width = logits.size(1), p.offset = offset;
  p.misalignment = misalignment(logits);
  p.logits = view<T>(logits), p.labels = read<int64_t>(labels);
  return p;
}

Tensor statistics(const Tensor& logits, const Tensor& labels, int64_t offset) {
  check_logits(logits, labels);
  const OnDevice guard("cross_entropy", "logits", logits);
  const Tensor results = at::empty({5, logits.size(0)}, logits.options().dtype(at::kFloat));
  with_type(logits.scalar_type(), [&](auto type) {
    auto p = logit_params<decltype(type)>(logits, labels, offset);
    p.statistics = view<float>(results);
    logit_statistics(p, current_stream());
  });
  return results;
}

void gradient_of_logits(const Tensor& gradient, const Tensor& logits, const Tensor& lse,
                        const Tensor& labels, const Tensor& upstream, int64_t offset,
                        int64_t vocabulary, double label_smoothing, double z_loss) {
  check_logits(logits, labels);
  check_gradient(gradient, logits, lse, upstream);
  const OnDevice guard("cross_entropy", "logits", logits);
  const Tensor lse_rows = lse.to(at::kFloat).contiguous();
  const Tensor upstream_rows = upstream.to(at::kFloat).contiguous();
  const bool agrees = misalignment(gradient) == misalignment(logits);
  const Tensor readable = agrees ? logits : gradient.copy_(logits);
  with_type(logits.scalar_type(), [&](auto type) {
    using T = decltype(type);
    auto p = logit_params<T>(readable, labels, offset);
    p.gradient = view<T>(gradient);
    p.lse = read<float>(lse_rows), p.upstream = read<float>(upstream_rows);
    p.vocabulary = vocabulary;
    p.label_smoothing = static_cast<float>(label_smoothing);
    p.z_loss = static_cast<float>(z_loss);
    logit_gradient(p, current_stream());
  });
}

/// Whether 16-byte accesses fit: each half of a section is whole vectors, at aligned addresses.
bool rope_has_vectors(const Tensor& x, const Tensor& cos, const Tensor& sin, bool interleaved) {
  const int64_t vector = 16 / x.element_size(), half = cos.size(3);
  return has_aligned_rows(x) && misalignment(cos) == 0 && misalignment(sin) == 0 &&
         x.size(3) % vector == 0 && (interleaved ? 2 * half : half) % vector == 0;
}

/// Rotate x, its last dimension contiguous, to out, which is contiguous or x itself.
void rotate(const Tensor& x, const Tensor& out, const Tensor& cos, const Tensor& sin,
            bool interleaved, bool inverse) {
  const Tensor c = cos.to(at::kFloat).contiguous(), s = sin.to(at::kFloat).contiguous();
  with_type(x.scalar_type(), [&](auto type) {
    using T = decltype(type);
    RopeParams<T> p = {};
    p.batch = static_cast<int>(x.size(0)), p.rows_per_batch = static_cast<int>(x.size(1));
    p.heads = static_cast<int>(x.size(2)), p.head_dim = static_cast<int>(x.size(3));
    p.axes = static_cast<int>(cos.size(2)), p.half = static_cast<int>(cos.size(3));
    p.x = read<T>(x), p.out = view<T>(out);
    p.x_strides = strides_of(x), p.out_strides = strides_of(out);
    p.cos = read<float>(c), p.sin = read<float>(s);
    p.interleaved = interleaved, p.sign = inverse ? -1.0f : 1.0f;
    p.has_vectors = rope_has_vectors(x, c, s, interleaved);
    rope(p, current_stream());
  });
}

/// A tensor whose last dimension is contiguous: x, or a copy.
Tensor with_rows(const Tensor& x) {
  return x.stride(3) == 1 || x.size(3) == 1 ? x : x.contiguous();
}

Tensor rotated(const Tensor& x, const Tensor& cos, const Tensor& sin, bool interleaved,
               bool inverse) {
  check_rope(x, cos, sin);
  const OnDevice guard("rope", "x", x);
  const Tensor out = at::empty(x.sizes(), x.options());
  rotate(with_rows(x), out, cos, sin, interleaved, inverse);
  return out;
}

void rotate_in_place(const Tensor& x, const Tensor& cos, const Tensor& sin, bool interleaved,
                     bool inverse) {
  check_rope(x, cos, sin);
  check_apart("rope", "x", x);
  const OnDevice guard("rope", "x", x);
  const Tensor rows = with_rows(x);
  rotate(rows, rows, cos, sin, interleaved, inverse);
  if (rows.data_ptr() != x.data_ptr()) x.copy_(rows);
}

Tensor dropped(const Tensor& x, double p, int64_t seed, const Tensor& sample_ids,
               int64_t position_offset, int64_t feature_offset) {
  check_hidden_dropout(x, p, sample_ids);
  const OnDevice guard("dropout", "x", x);
  const Tensor read_x = x.contiguous(), ids = sample_ids.contiguous();
  const Tensor out = at::empty(x.sizes(), x.options());
  with_type(x.scalar_type(), [&](auto type) {
    using T = decltype(type);
    const int64_t vector = 16 / static_cast<int64_t>(sizeof(T));
    DropoutParams<T> d = {};
    d.batch = static_cast<int>(x.size(0)), d.features = static_cast<int>(x.size(2));
    d.x = read<T>(read_x), d.out = view<T>(out);
    d.drops = drops_of(p, seed, ids, x.size(1), position_offset, feature_offset);
    d.has_vectors =
        misalignment(read_x) == 0 && d.features % vector == 0 && feature_offset % vector == 0;
    dropout(d, current_stream());
  });
  return out;
}

}  // namespace
}  // namespace megalite

#ifdef MEGALITE_SIMT
TORCH_LIBRARY(megalite_simt, m) { megalite::define_operators(m); }
#endif

MEGALITE_REGISTER(m) {
  m.impl("logit_statistics", megalite::statistics);
  m.impl("logit_gradient", megalite::gradient_of_logits);
  m.impl("rope", megalite::rotated);
  m.impl("rope_", megalite::rotate_in_place);
  m.impl("dropout", megalite::dropped);
}
