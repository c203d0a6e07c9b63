// Norms with residual addition on the CPU: checks, memory and threads around the kernels.
#include <torch/library.h>

#include <optional>
#include <tuple>

#include "checks.h"
#include "cpu/instruction_set.h"
#include "cpu/parts.h"
#include "cpu/threads.h"

namespace megalite::cpu {
namespace {

using at::Tensor;
using Four = std::tuple<Tensor, Tensor, Tensor, Tensor>;

Four add_norm(const Tensor& x, const MaybeTensor& update, const Tensor& weight,
              const MaybeTensor& bias, double eps, bool centred, double weight_offset,
              double residual_scale, double dropout_p, int64_t dropout_seed,
              const MaybeTensor& sample_ids, int64_t position_offset) {
  check_norm({x, update, weight, bias}, dropout_p, sample_ids);
  const bool is_narrow_sum = update && is_narrow(x.scalar_type());
  const Tensor wide = floats(x), scale = floats(weight);
  const MaybeTensor more = floats(update), shift = floats(bias);
  const at::IntArrayRef rows = x.sizes().slice(0, x.dim() - 1);
  Tensor sum = update ? new_floats(x.sizes()) : at::empty({0}, at::kFloat);
  const Tensor out = new_floats(x.sizes()), inverse = at::empty(rows, at::kFloat);
  const Tensor mean = centred ? at::empty(rows, at::kFloat) : at::empty({0}, at::kFloat);
  Norm p = {};
  p.x = wide.data_ptr<float>(), p.update = data_if(more), p.sum = data_if(sum);
  p.weight = scale.data_ptr<float>(), p.bias = data_if(shift), p.out = out.data_ptr<float>();
  p.mean = data_if(mean), p.inverse = inverse.data_ptr<float>(), p.width = x.size(-1);
  p.eps = static_cast<float>(eps), p.weight_offset = static_cast<float>(weight_offset);
  p.residual_scale = static_cast<float>(residual_scale);
  p.drops = update && dropout_p > 0;
  const Tensor ids = p.drops ? sample_ids->contiguous() : Tensor();
  if (p.drops) p.dropout = dropout_of(dropout_p, dropout_seed, ids, *more, sum, position_offset, 0);
  each_row(inverse.numel(), p.width, [&](int64_t i) { kernels().norm(p, i); });
  if (!is_narrow_sum) return {sum.to(x.scalar_type()), out.to(x.scalar_type()), mean, inverse};
  // What is normalised is the sum as it is kept.
  sum = sum.to(x.scalar_type());
  const Tensor kept = floats(sum);
  p.x = kept.data_ptr<float>(), p.update = nullptr;
  each_row(inverse.numel(), p.width, [&](int64_t i) { kernels().norm(p, i); });
  return {sum, out.to(x.scalar_type()), mean, inverse};
}

Four add_norm_backward(const Tensor& dout, const MaybeTensor& dsum, const Tensor& sum,
                       const Tensor& weight, const Tensor& mean, const Tensor& inverse,
                       double weight_offset, double residual_scale, double dropout_p,
                       int64_t dropout_seed, const MaybeTensor& sample_ids, int64_t position_offset,
                       bool has_update, bool has_bias) {
  check_norm({sum, dsum, weight, {}}, dropout_p, sample_ids);
  check_norm_gradient(dout, sum, mean, inverse);
  const Tensor up = floats(dout), rows = floats(sum), scale = floats(weight);
  const Tensor means = mean.contiguous(), inverses = inverse.contiguous();
  const MaybeTensor more = floats(dsum);
  const int64_t num_rows = inverse.numel(), chunks = (num_rows + kChunkRows - 1) / kChunkRows;
  const Tensor dx = new_floats(sum.sizes());
  const bool is_apart = has_update && (dropout_p > 0 || residual_scale != 1.0);
  const Tensor dupdate = is_apart ? new_floats(sum.sizes()) : new_floats({0});
  const Tensor weight_parts = new_floats({chunks, sum.size(-1)});
  const Tensor bias_parts = has_bias ? new_floats({chunks, sum.size(-1)}) : new_floats({0});
  NormGradient p = {};
  p.dout = up.data_ptr<float>(), p.dsum = data_if(more), p.sum = rows.data_ptr<float>();
  p.weight = scale.data_ptr<float>(), p.mean = data_if(means);
  p.inverse = inverses.data_ptr<float>();
  p.dx = dx.data_ptr<float>(), p.dupdate = data_if(dupdate);
  p.weight_parts = weight_parts.data_ptr<float>();
  p.bias_parts = data_if(bias_parts);
  p.num_rows = num_rows, p.width = sum.size(-1), p.chunk_rows = kChunkRows;
  p.weight_offset = static_cast<float>(weight_offset);
  p.residual_scale = static_cast<float>(residual_scale);
  p.drops = is_apart && dropout_p > 0;
  const Tensor ids = p.drops ? sample_ids->contiguous() : Tensor();
  if (p.drops)
    p.dropout = dropout_of(dropout_p, dropout_seed, ids, dupdate, dupdate, position_offset, 0);
  each(chunks, [&](int64_t i) { kernels().norm_gradient(p, i); });
  const at::ScalarType type = sum.scalar_type();
  return {dx.to(type), dupdate.to(type), sum_of_parts(weight_parts, type),
          has_bias ? sum_of_parts(bias_parts, type) : bias_parts.to(type)};
}

}  // namespace

TORCH_LIBRARY_IMPL(megalite, CPU, m) {
  m.impl("add_norm", add_norm);
  m.impl("add_norm_backward", add_norm_backward);
}

}  // namespace megalite::cpu
