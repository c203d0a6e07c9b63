// The tile plan of a mask on the CPU: docs/design.md says what it holds.
#include "mask_plan.h"

#include <ATen/ATen.h>
#include <torch/library.h>

#include <algorithm>
#include <tuple>

#include "checks.h"

namespace megalite::cpu {
namespace {

using at::Tensor;

/// The rows of one sequence.
struct Rows {
  const int32_t *start, *end;
  int64_t count;
};

void check_bounds(const Rows& rows, int64_t num_keys, int64_t sequence) {
  for (int64_t i = 0; i < rows.count; ++i)
    TORCH_CHECK(0 <= rows.start[i] && rows.start[i] <= rows.end[i] && rows.end[i] <= num_keys,
                "attention start, end: 0 <= start <= end <= ", num_keys, " keys must hold, came [",
                rows.start[i], ", ", rows.end[i], ") in row ", i, " of sequence ", sequence);
}

/// plan [entries, 4]: min start and max end of rows with keys, max start and min end of all.
void plan_rows(const Rows& rows, int64_t num_keys, int32_t* plan) {
  for (int64_t first = 0; first < rows.count; first += kPlanTile, plan += 4) {
    plan[0] = plan[3] = num_keys, plan[1] = plan[2] = 0;
    for (int64_t i = first; i < std::min(rows.count, first + kPlanTile); ++i) {
      if (rows.start[i] < rows.end[i]) {
        plan[0] = std::min(plan[0], rows.start[i]);
        plan[1] = std::max(plan[1], rows.end[i]);
      }
      plan[2] = std::max(plan[2], rows.start[i]);
      plan[3] = std::min(plan[3], rows.end[i]);
    }
  }
}

/// plan [entries, 3], zero at first: the [first, last) row that touches an entry's keys, and a bit
/// for each attended key.
void plan_keys(const Rows& rows, int32_t* plan) {
  for (int64_t i = 0; i < rows.count; ++i) {
    if (rows.start[i] >= rows.end[i]) continue;
    for (int64_t e = rows.start[i] / kPlanTile; e * kPlanTile < rows.end[i]; ++e) {
      int32_t* const entry = plan + 3 * e;
      if (entry[1] == 0) entry[0] = i;
      entry[1] = i + 1;
      const int64_t from = std::max<int64_t>(rows.start[i] - e * kPlanTile, 0);
      const int64_t to = std::min<int64_t>(rows.end[i] - e * kPlanTile, kPlanTile);
      entry[2] |= static_cast<int32_t>((int64_t{1} << to) - (int64_t{1} << from));
    }
  }
}

std::tuple<Tensor, Tensor> mask_plan(const Tensor& start, const Tensor& end, int64_t num_keys) {
  check_intervals(start, end, num_keys);
  const int64_t batch = start.size(0), queries = start.size(1);
  const int64_t row_entries = plan_entries(queries), key_entries = plan_entries(num_keys);
  const Tensor starts = start.contiguous(), ends = end.contiguous();
  const Tensor rows = at::empty({batch, row_entries, 4}, start.options());
  const Tensor keys = at::zeros({batch, key_entries, 3}, start.options());
  for (int64_t b = 0; b < batch; ++b) {
    const Rows sequence = {starts.data_ptr<int32_t>() + b * queries,
                           ends.data_ptr<int32_t>() + b * queries, queries};
    check_bounds(sequence, num_keys, b);
    plan_rows(sequence, num_keys, rows.data_ptr<int32_t>() + b * row_entries * 4);
    plan_keys(sequence, keys.data_ptr<int32_t>() + b * key_entries * 3);
  }
  return {rows, keys};
}

}  // namespace

TORCH_LIBRARY_IMPL(megalite, CPU, m) { m.impl("mask_plan", mask_plan); }

}  // namespace megalite::cpu
