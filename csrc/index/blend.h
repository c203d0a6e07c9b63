// Several datasets as one order, computed for each number: memory is one count a dataset.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

namespace megalite::index {

// Sample j of dataset d stands at time (2 j + 1) / (2 counts[d]); the order is that of times, and
// of datasets where times are equal. So every stretch of it holds the datasets in proportion to
// their counts, within one sample each.
class Blend {
 public:
  // Throws std::invalid_argument: there is no count, one is not positive, or their sum exceeds
  //   2^60.
  explicit Blend(std::vector<int64_t> counts);

  int64_t size() const { return size_; }

  // The dataset and the sample inside it. Cost: 48 passes over the datasets.
  // Throws std::out_of_range: number is not in [0, size).
  std::pair<int64_t, int64_t> at(int64_t number) const;

 private:
  int64_t samples_until(int64_t dataset, int64_t tick) const;
  int64_t samples_until(int64_t tick) const;

  std::vector<int64_t> counts_;
  int64_t size_ = 0;
};

}  // namespace megalite::index
