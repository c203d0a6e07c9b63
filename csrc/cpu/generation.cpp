// What one more token of each sequence takes, on the CPU: checks, memory and threads around the
// kernels.
#include <torch/library.h>

#include <optional>
#include <tuple>

#include "checks.h"
#include "cpu/instruction_set.h"
#include "cpu/threads.h"

namespace megalite::cpu {
namespace {

using at::Tensor;

const float* floats(const char* op, const char* name, const Tensor& x, at::IntArrayRef sizes) {
  check_tensor(op, name, x, at::kFloat, sizes);
  TORCH_CHECK(x.is_contiguous(), op, " ", name, ": must be contiguous, came strides ", x.strides());
  return x.data_ptr<float>();
}

/// Refuse keys that a table has no block for, and blocks that the pools don't have.
void check_tables(const PagedAttention& p, int64_t num_blocks) {
  for (int64_t b = 0; b < p.batch; ++b) {
    TORCH_CHECK(0 <= p.start[b] && p.start[b] <= p.end[b] && p.end[b] <= p.most_keys &&
                    p.end[b] <= p.table_size * p.block_rows,
                "paged_attention start, end: 0 <= start <= end <= ", p.most_keys, " keys in ",
                p.table_size, " blocks of ", p.block_rows, " must hold, came [", p.start[b], ", ",
                p.end[b], ") in sequence ", b);
    for (int64_t i = p.start[b] / p.block_rows; i * p.block_rows < p.end[b]; ++i) {
      const int32_t block = p.tables[b * p.table_size + i];
      TORCH_CHECK(0 <= block && block < num_blocks, "paged_attention tables: must be in [0, ",
                  num_blocks, "), came ", block, " in sequence ", b);
    }
  }
}

Tensor paged_attention(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& tables,
                       const Tensor& start, const Tensor& end, const std::optional<Tensor>& bias,
                       int64_t most_keys, double scale, double score_cap) {
  check_paged({q, k, v, tables, start, end, bias}, most_keys);
  TORCH_CHECK(q.scalar_type() == at::kFloat, "paged_attention q: must be float32 on the CPU, came ",
              q.scalar_type());
  PagedAttention p = {};
  p.batch = q.size(0), p.heads = q.size(1), p.head_dim = q.size(2);
  p.groups = k.size(1), p.block_rows = k.size(2), p.table_size = tables.size(1);
  p.most_keys = most_keys, p.scale = scale, p.score_cap = score_cap;
  const Tensor wide_q = q.contiguous();
  p.q = wide_q.data_ptr<float>(), p.k = k.data_ptr<float>(), p.v = v.data_ptr<float>();
  p.tables = tables.data_ptr<int32_t>();
  p.start = start.data_ptr<int32_t>(), p.end = end.data_ptr<int32_t>();
  if (bias) p.bias = bias->data_ptr<float>();
  check_tables(p, k.size(0));
  const Tensor out = new_floats({p.batch, p.heads, p.head_dim});
  p.out = out.data_ptr<float>();
  each_with_scratch(p.batch * p.heads, kernels().paged_scratch(p),
                    [&](int64_t i, float* scratch) { kernels().paged_attention(p, i, scratch); });
  return out;
}

Tensor row_products(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias) {
  constexpr const char* kOp = "row_products";
  TORCH_CHECK(x.dim() == 2 && weight.dim() == 2 && x.size(1) == weight.size(1),
              "row_products x, weight: must be [T, D] and [O, D], came ", x.sizes(), " and ",
              weight.sizes());
  RowProducts p = {};
  p.num_rows = x.size(0), p.depth = x.size(1), p.width = weight.size(0);
  const Tensor rows = x.contiguous();
  p.x = floats(kOp, "x", rows, {p.num_rows, p.depth});
  p.weight = floats(kOp, "weight", weight, {p.width, p.depth});
  if (bias) p.bias = floats(kOp, "bias", *bias, {p.width});
  const Tensor out = new_floats({p.num_rows, p.width});
  p.out = out.data_ptr<float>();
  // A task's columns are a multiple of a tile's 4; its rows, of 6, stay in a core's second cache.
  constexpr int64_t kColumns = 32, kRowFloats = int64_t{1} << 16;
  const int64_t column_tasks = (p.width + kColumns - 1) / kColumns;
  const int64_t most_rows =
      std::max<int64_t>(1, kRowFloats / (6 * std::max<int64_t>(1, p.depth))) * 6;
  each((p.num_rows + most_rows - 1) / most_rows * column_tasks, [&](int64_t i) {
    const int64_t row = i / column_tasks * most_rows, column = i % column_tasks * kColumns;
    RowProducts part = p;
    part.num_rows = std::min(most_rows, p.num_rows - row);
    part.x += row * p.depth, part.out += row * p.width;
    kernels().row_products(part, column, std::min(p.width, column + kColumns));
  });
  return out;
}

std::tuple<Tensor, Tensor> draw(const Tensor& logits, const Tensor& uniform, double temperature) {
  TORCH_CHECK(logits.dim() == 2 && logits.size(1) > 0, "draw logits: must be [B, V], came ",
              logits.sizes());
  check_tensor("draw", "uniform", uniform, at::kDouble, {logits.size(0)});
  TORCH_CHECK(temperature > 0, "draw temperature: must be positive, came ", temperature);
  const Tensor rows = logits.contiguous(), numbers = uniform.contiguous();
  Draws p = {};
  p.logits = floats("draw", "logits", rows, rows.sizes());
  p.uniform = numbers.data_ptr<double>(), p.width = rows.size(1), p.temperature = temperature;
  const Tensor tokens = at::empty({rows.size(0)}, at::kLong);
  const Tensor log_probs = at::empty({rows.size(0)}, at::kFloat);
  p.tokens = tokens.data_ptr<int64_t>(), p.log_probs = log_probs.data_ptr<float>();
  each(rows.size(0), [&](int64_t i) { kernels().draw(p, i); });
  return {tokens, log_probs};
}

}  // namespace

TORCH_LIBRARY_IMPL(megalite, CPU, m) {
  m.impl("paged_attention", paged_attention);
  m.impl("row_products", row_products);
  m.impl("draw", draw);
}

}  // namespace megalite::cpu
