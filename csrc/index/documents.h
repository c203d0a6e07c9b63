// Where tokens and pieces of documents lie: a sample index that is computed, not stored.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

namespace megalite::index {

using Range = std::array<int64_t, 3>;  // document, first token, end token

// Documents one after another. Document d is cut into ceil(length_d / longest) pieces, all but the
// last of `longest` tokens. Memory is two sums for each run of kRun documents; the lengths are the
// caller's and must outlive this.
class DocumentIndex {
 public:
  // Throws std::invalid_argument: a length is negative, or longest is not positive.
  DocumentIndex(const int64_t* lengths, int64_t num_documents, int64_t longest);

  int64_t num_tokens() const { return tokens_.back(); }
  int64_t num_pieces() const { return pieces_.back(); }

  // The parts of documents that make up tokens [first, last) of them all.
  // Throws std::out_of_range: not 0 <= first <= last <= num_tokens.
  std::vector<Range> token_ranges(int64_t first, int64_t last) const;

  // Pieces [first, last). Throws std::out_of_range like token_ranges.
  std::vector<Range> piece_ranges(int64_t first, int64_t last) const;

 private:
  static constexpr int64_t kRun =
      64;  // a lookup reads at most this many lengths: a few cache lines

  int64_t num_pieces_of(int64_t document) const;

  const int64_t* lengths_;
  int64_t num_documents_;
  int64_t longest_;
  std::vector<int64_t> tokens_;  // [runs + 1], tokens before each run of documents
  std::vector<int64_t> pieces_;  // [runs + 1]
};

}  // namespace megalite::index
