#include "index/blend.h"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace megalite::index {

namespace {

__extension__ using Wide = __int128;  // products of a count and a time are exact

constexpr int kTickBits = 48;  // a tick is 2^-48 of the whole; few samples share one
constexpr int64_t kMostSamples = int64_t{1} << 60;

struct Sample {
  int64_t dataset, inside, count;

  bool operator<(const Sample& other) const {
    const Wide mine = Wide{2 * inside + 1} * other.count;
    const Wide theirs = Wide{2 * other.inside + 1} * count;
    return mine != theirs ? mine < theirs : dataset < other.dataset;
  }
};

}  // namespace

Blend::Blend(std::vector<int64_t> counts) : counts_(std::move(counts)) {
  if (counts_.empty()) {
    throw std::invalid_argument("counts: must be at least one");
  }
  for (const int64_t count : counts_) {
    if (count < 1 || count > kMostSamples - size_) {
      throw std::invalid_argument(
          "counts: each must be positive and their sum at most 2^60, came " +
          std::to_string(count));
    }
    size_ += count;
  }
}

// Samples of a dataset at times up to `tick`: j with (2 j + 1) 2^48 <= 2 count tick.
int64_t Blend::samples_until(int64_t dataset, int64_t tick) const {
  const Wide half = Wide{1} << kTickBits;
  return static_cast<int64_t>((2 * Wide{counts_[dataset]} * tick + half) >> (kTickBits + 1));
}

int64_t Blend::samples_until(int64_t tick) const {
  int64_t sum = 0;
  for (size_t d = 0; d < counts_.size(); ++d) {
    sum += samples_until(static_cast<int64_t>(d), tick);
  }
  return sum;
}

std::pair<int64_t, int64_t> Blend::at(int64_t number) const {
  if (number < 0 || number >= size_) {
    throw std::out_of_range("sample " + std::to_string(number) + ": must lie in [0, " +
                            std::to_string(size_) + ")");
  }
  int64_t before = 0, after = int64_t{1} << kTickBits;  // more than `number` samples until `after`
  while (after - before > 1) {
    const int64_t middle = before + (after - before) / 2;
    (samples_until(middle) > number ? after : before) = middle;
  }
  std::vector<Sample> candidates;
  int64_t rank = number;
  for (size_t d = 0; d < counts_.size(); ++d) {
    const auto dataset = static_cast<int64_t>(d);
    const int64_t first = samples_until(dataset, before), end = samples_until(dataset, after);
    rank -= first;
    for (int64_t inside = first; inside < end; ++inside) {
      candidates.push_back({dataset, inside, counts_[d]});
    }
  }
  std::nth_element(candidates.begin(), candidates.begin() + rank, candidates.end());
  return {candidates[rank].dataset, candidates[rank].inside};
}

}  // namespace megalite::index
