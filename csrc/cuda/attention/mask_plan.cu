// Launches mask_plan.cuh.
#include "cuda/attention/mask_plan.cuh"

namespace megalite {

void mask_plan(const MaskPlanParams& p, Stream stream) {
  constexpr uint32_t kThreads = kPlanWarps * kWarpSize;
  const int64_t row_entries = p.batch * plan_entries<int64_t>(p.queries);
  const int64_t key_entries = p.batch * plan_entries<int64_t>(p.num_keys);
  const auto blocks = [](int64_t count) {
    return static_cast<uint32_t>((count + kPlanWarps - 1) / kPlanWarps);
  };
  if (row_entries > 0) {
    launch(LaunchConfig{"plan_rows", {blocks(row_entries)}, {kThreads}, 0, stream}, plan_rows, p);
  }
  if (key_entries > 0) {
    launch(LaunchConfig{"plan_keys", {blocks(key_entries)}, {kThreads}, 0, stream}, plan_keys, p);
  }
}

}  // namespace megalite
