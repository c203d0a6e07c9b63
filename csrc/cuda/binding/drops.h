// Dropout as the kernels take it.
#pragma once

#include "cuda/binding/tensors.h"
#include "cuda/rows/params.cuh"
#include "philox.h"

namespace megalite {

/// Dropout of rows [B S, D]; `sample_ids`, contiguous [B], must outlive the launch.
inline Drops drops_of(double p, int64_t seed, const at::Tensor& sample_ids, int64_t rows_per_batch,
                      int64_t position_offset, int64_t feature_offset) {
  Drops drops = {};
  drops.rows_per_batch = static_cast<int>(rows_per_batch);
  drops.sample_ids = read<int64_t>(sample_ids);
  drops.position_offset = position_offset, drops.feature_offset = feature_offset;
  drops.seed = static_cast<uint64_t>(seed);
  drops.threshold = keep_threshold(p), drops.scale = static_cast<float>(1.0 / (1.0 - p));
  return drops;
}

}  // namespace megalite
