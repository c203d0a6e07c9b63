// The norms with residual addition on the CUDA backend, and with MEGALITE_SIMT on the emulator:
// checks, memory and launches around the kernels of csrc/cuda/rows/norm*.cuh.
#include <torch/library.h>

#include <algorithm>
#include <tuple>

#include "checks.h"
#include "cuda/binding/drops.h"
#include "cuda/binding/optional.h"
#include "cuda/binding/tensors.h"
#include "cuda/rows/norm_rows.cuh"
#include "cuda/rows/params.cuh"

namespace megalite {
namespace {

using at::Tensor;

/// The threads of a row: enough to hold it, a part of a warp or whole warps.
int lanes_for(int width, int held) {
  const int needed = (width + held - 1) / held;
  if (needed > kWarpSize) return (needed + kWarpSize - 1) / kWarpSize * kWarpSize;
  int lanes = 1;
  while (lanes < needed) lanes *= 2;
  return lanes;
}

/// How threads are laid out over rows like `x` [..., D].
template <class T>
NormRows rows_of(const Tensor& x) {
  NormRows rows = {};
  rows.width = static_cast<int>(x.size(-1));
  rows.count = rows.width == 0 ? 0 : x.numel() / rows.width;
  rows.has_vectors = rows.width % (16 / static_cast<int>(sizeof(T))) == 0;
  const int held = rows.width <= 8 * kMostLanes ? 8 : kMostHeld;
  const bool is_held = rows.has_vectors && rows.width <= held * kMostLanes;
  rows.lanes = is_held ? lanes_for(rows.width, held) : kShortRowThreads;
  return rows;
}

using Sums = std::tuple<Tensor, Tensor, Tensor, Tensor>;

Sums added_norm(const Tensor& x, const MaybeTensor& update, const Tensor& weight,
                const MaybeTensor& bias, double eps, bool centred, double weight_offset,
                double residual_scale, double dropout_p, int64_t dropout_seed,
                const MaybeTensor& sample_ids, int64_t position_offset) {
  check_norm({x, update, weight, bias}, dropout_p, sample_ids);
  const OnDevice guard("add_norm", "x", x);
  const Tensor from = aligned(x), scale = aligned(weight);
  const MaybeTensor more = aligned(update), shift = aligned(bias);
  const MaybeTensor ids = aligned(sample_ids);
  const Tensor sum = at::empty(update ? x.sizes() : at::IntArrayRef({0}), from.options());
  const Tensor out = at::empty(x.sizes(), from.options());
  const at::IntArrayRef rows = x.sizes().slice(0, x.dim() - 1);
  const Tensor mean =
      at::empty(centred ? rows : at::IntArrayRef({0}), x.options().dtype(at::kFloat));
  const Tensor inverse = at::empty(rows, x.options().dtype(at::kFloat));
  with_type(x.scalar_type(), [&](auto type) {
    using T = decltype(type);
    NormParams<T> p = {};
    p.rows = rows_of<T>(x);
    p.rows.centred = centred, p.rows.weight_offset = static_cast<float>(weight_offset);
    p.rows.residual_scale = static_cast<float>(residual_scale);
    if (update && dropout_p > 0)
      p.rows.drops = drops_of(dropout_p, dropout_seed, *ids, x.size(1), position_offset, 0);
    p.eps = static_cast<float>(eps);
    p.x = read<T>(from), p.update = read_if<T>(more);
    p.weight = read<T>(scale), p.bias = read_if<T>(shift);
    p.sum = view_if<T>(sum), p.out = view<T>(out);
    p.mean = view_if<float>(mean), p.inverse = view<float>(inverse);
    add_norm(p, current_stream());
  });
  return {sum, out, mean, inverse};
}

/// Blocks that fill the device's processors as one row after another is summed: few, since each
/// writes sums over columns.
int64_t gradient_blocks(const NormRows& rows) {
  constexpr int64_t kThreadsPerProcessor = 1024, kMostPerProcessor = 4;
  const int64_t threads = norm_block(rows), rows_per_block = threads / rows.lanes;
  const int64_t resident =
      std::clamp<int64_t>(kThreadsPerProcessor / threads, 1, kMostPerProcessor);
  const int64_t groups = (rows.count + rows_per_block - 1) / rows_per_block;
  return std::min(groups, resident * num_processors());
}

/// Parts [P, D] of a gradient; P is what norm_gradient.cuh says.
Tensor new_parts(const NormRows& rows, int64_t blocks, const Tensor& like) {
  const int64_t each = rows.lanes > kWarpSize ? 1 : norm_block(rows) / kWarpSize;
  return at::empty({blocks * each, rows.width}, like.options().dtype(at::kFloat));
}

Sums added_norm_backward(const Tensor& dout, const MaybeTensor& dsum, const Tensor& sum,
                         const Tensor& weight, const Tensor& mean, const Tensor& inverse,
                         double weight_offset, double residual_scale, double dropout_p,
                         int64_t dropout_seed, const MaybeTensor& sample_ids,
                         int64_t position_offset, bool has_update, bool has_bias) {
  check_norm({sum, dsum, weight, {}}, dropout_p, sample_ids);
  check_norm_gradient(dout, sum, mean, inverse);
  const OnDevice guard("add_norm_backward", "sum", sum);
  const Tensor up = aligned(dout), rows_in = aligned(sum), scale = aligned(weight);
  const Tensor means = mean.contiguous(), inverses = inverse.contiguous();
  const MaybeTensor more = aligned(dsum), ids = aligned(sample_ids);
  const bool is_apart = has_update && (dropout_p > 0 || residual_scale != 1.0);
  const Tensor dx = at::empty(sum.sizes(), up.options());
  const Tensor dupdate = at::empty(is_apart ? sum.sizes() : at::IntArrayRef({0}), up.options());
  const Tensor dweight = at::empty(weight.sizes(), up.options());
  const Tensor dbias = at::empty(has_bias ? weight.sizes() : at::IntArrayRef({0}), up.options());
  with_type(sum.scalar_type(), [&](auto type) {
    using T = decltype(type);
    NormGradientParams<T> p = {};
    p.rows = rows_of<T>(sum);
    p.rows.centred = mean.numel() > 0;
    p.rows.weight_offset = static_cast<float>(weight_offset);
    p.rows.residual_scale = static_cast<float>(residual_scale);
    if (has_update && dropout_p > 0)
      p.rows.drops = drops_of(dropout_p, dropout_seed, *ids, sum.size(1), position_offset, 0);
    if (p.rows.count == 0) {
      dweight.zero_(), dbias.zero_();
      return;
    }
    p.num_blocks = static_cast<int>(gradient_blocks(p.rows));
    const Tensor weight_parts = new_parts(p.rows, p.num_blocks, sum);
    const Tensor bias_parts =
        has_bias ? new_parts(p.rows, p.num_blocks, sum) : weight_parts.new_empty({0});
    p.dout = read<T>(up), p.dsum = read_if<T>(more);
    p.sum = read<T>(rows_in), p.weight = read<T>(scale);
    p.mean = read<float>(means), p.inverse = read<float>(inverses);
    p.dx = view<T>(dx), p.dupdate = view_if<T>(dupdate);
    p.weight_parts = view<float>(weight_parts), p.bias_parts = view_if<float>(bias_parts);
    add_norm_backward(p, current_stream());
    sum_parts<T>({weight_parts, bias_parts}, {dweight, dbias});
  });
  return {dx, dupdate, dweight, dbias};
}

}  // namespace
}  // namespace megalite

MEGALITE_REGISTER(m) {
  m.impl("add_norm", megalite::added_norm);
  m.impl("add_norm_backward", megalite::added_norm_backward);
}
