// Parallel loops of the CPU backend, on PyTorch's threads.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>

#include "cpu/tensors.h"

namespace megalite::cpu {

/// Run task(i, scratch) for i < count, scheduled dynamically; each thread has scratch memory.
template <class Task>
void each_with_scratch(int64_t count, int64_t scratch_floats, const Task& task) {
  std::atomic<int64_t> next{0};
  const int64_t workers = std::min<int64_t>(count, at::get_num_threads());
  at::parallel_for(0, workers, 1, [&](int64_t, int64_t) {
    const at::Tensor scratch = new_floats({scratch_floats});
    for (int64_t i; (i = next.fetch_add(1)) < count;) task(i, scratch.data_ptr<float>());
  });
}
/// The same without scratch memory.
template <class Task>
void each(int64_t count, const Task& task) {
  each_with_scratch(count, 0, [&](int64_t i, float*) { task(i); });
}

/// Run task(first, last) over ranges of rows, scheduled statically: rows are many and short.
template <class Task>
void each_range(int64_t rows, int64_t floats_per_row, const Task& task) {
  const int64_t grain = std::max<int64_t>(1, 16384 / std::max<int64_t>(1, floats_per_row));
  at::parallel_for(0, rows, grain, task);
}
/// The same a row at a time.
template <class Task>
void each_row(int64_t rows, int64_t floats_per_row, const Task& task) {
  each_range(rows, floats_per_row, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) task(i);
  });
}

}  // namespace megalite::cpu
