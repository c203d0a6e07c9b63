#include "index/documents.h"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace megalite::index {

namespace {

void check_bounds(const char* what, int64_t first, int64_t last, int64_t count) {
  if (first < 0 || first > last || last > count) {
    throw std::out_of_range(std::string(what) + " [" + std::to_string(first) + ", " +
                            std::to_string(last) + "): must lie in [0, " + std::to_string(count) +
                            ")");
  }
}

// The last run whose sum is at most `value`; runs without content are passed over.
int64_t run_of(const std::vector<int64_t>& sums, int64_t value) {
  return std::upper_bound(sums.begin(), sums.end(), value) - sums.begin() - 1;
}

}  // namespace

DocumentIndex::DocumentIndex(const int64_t* lengths, int64_t num_documents, int64_t longest)
    : lengths_(lengths), num_documents_(num_documents), longest_(longest) {
  if (longest < 1) {
    throw std::invalid_argument("longest: must be positive, came " + std::to_string(longest));
  }
  int64_t tokens = 0, pieces = 0;
  for (int64_t d = 0; d < num_documents; ++d) {
    if (lengths[d] < 0) {
      throw std::invalid_argument("document " + std::to_string(d) + ": its length must be 0 or " +
                                  "more, came " + std::to_string(lengths[d]));
    }
    if (d % kRun == 0) {
      tokens_.push_back(tokens);
      pieces_.push_back(pieces);
    }
    tokens += lengths[d];
    pieces += num_pieces_of(d);
  }
  tokens_.push_back(tokens);
  pieces_.push_back(pieces);
}

int64_t DocumentIndex::num_pieces_of(int64_t document) const {
  return (lengths_[document] + longest_ - 1) / longest_;
}

std::vector<Range> DocumentIndex::token_ranges(int64_t first, int64_t last) const {
  check_bounds("tokens", first, last, num_tokens());
  std::vector<Range> ranges;
  if (first == last) {
    return ranges;
  }
  const int64_t run = run_of(tokens_, first);
  int64_t begin = tokens_[run];
  for (int64_t d = run * kRun; begin < last; begin += lengths_[d++]) {
    const int64_t from = std::max(first, begin), to = std::min(last, begin + lengths_[d]);
    if (from < to) {
      ranges.push_back({d, from - begin, to - begin});
    }
  }
  return ranges;
}

std::vector<Range> DocumentIndex::piece_ranges(int64_t first, int64_t last) const {
  check_bounds("pieces", first, last, num_pieces());
  std::vector<Range> ranges;
  if (first == last) {
    return ranges;
  }
  ranges.reserve(last - first);
  const int64_t run = run_of(pieces_, first);
  int64_t begin = pieces_[run];
  for (int64_t d = run * kRun; begin < last; begin += num_pieces_of(d++)) {
    const int64_t stop = std::min(last, begin + num_pieces_of(d));
    for (int64_t piece = std::max(first, begin); piece < stop; ++piece) {
      const int64_t from = (piece - begin) * longest_;
      ranges.push_back({d, from, std::min(from + longest_, lengths_[d])});
    }
  }
  return ranges;
}

}  // namespace megalite::index
