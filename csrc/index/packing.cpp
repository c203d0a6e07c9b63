#include "index/packing.h"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace megalite::index {

namespace {

std::string text(const Lengths& lengths) {
  return std::to_string(lengths.decoder) + " and " + std::to_string(lengths.encoder);
}

// A complete binary tree of rows; a node knows the most room below it in each stream.
class RowTree {
 public:
  explicit RowTree(Lengths capacity) : capacity_(capacity), nodes_(2, kNone) {}

  int64_t num_rows() const { return num_rows_; }

  // Take room from the first row that has it, a row behind all others if none has; give its number.
  int64_t place(const Lengths& item) {
    int64_t row = find(1, item);
    if (row < 0) {
      row = open();
    }
    int64_t node = leaves_ + row;
    nodes_[node].decoder -= item.decoder;
    nodes_[node].encoder -= item.encoder;
    raise(node);
    return row;
  }

 private:
  static constexpr Lengths kNone{-1, -1};

  int64_t find(int64_t node, const Lengths& item) const {
    if (!item.fits(nodes_[node])) {
      return -1;
    }
    if (node >= leaves_) {
      return node - leaves_;
    }
    const int64_t left = find(2 * node, item);
    return left >= 0 ? left : find(2 * node + 1, item);
  }

  int64_t open() {
    if (num_rows_ == leaves_) {
      grow();
    }
    nodes_[leaves_ + num_rows_] = capacity_;
    raise(leaves_ + num_rows_);
    return num_rows_++;
  }

  void grow() {
    std::vector<Lengths> rows(nodes_.begin() + leaves_, nodes_.end());
    leaves_ *= 2;
    nodes_.assign(2 * leaves_, kNone);
    std::copy(rows.begin(), rows.end(), nodes_.begin() + leaves_);
    for (int64_t node = leaves_ - 1; node > 0; --node) {
      join(node);
    }
  }

  void raise(int64_t node) {
    for (node /= 2; node > 0; node /= 2) {
      join(node);
    }
  }

  void join(int64_t node) {
    const Lengths &left = nodes_[2 * node], &right = nodes_[2 * node + 1];
    nodes_[node] = {std::max(left.decoder, right.decoder), std::max(left.encoder, right.encoder)};
  }

  Lengths capacity_;
  int64_t num_rows_ = 0, leaves_ = 1;
  std::vector<Lengths> nodes_;  // [2 leaves]; node n has children 2 n and 2 n + 1, the root is 1
};

}  // namespace

Rows first_fit(const std::vector<Lengths>& items, Lengths capacity) {
  RowTree tree(capacity);
  std::vector<int64_t> rows;
  rows.reserve(items.size());
  for (const Lengths& item : items) {
    if (!item.fits(capacity) || !Lengths{}.fits(item)) {
      throw std::invalid_argument("item " + std::to_string(rows.size()) + ": lengths must lie in " +
                                  "[0, " + text(capacity) + "], came " + text(item));
    }
    rows.push_back(tree.place(item));
  }
  Rows packed;
  packed.items.resize(items.size());
  packed.bounds.assign(tree.num_rows() + 1, 0);
  for (const int64_t row : rows) {
    ++packed.bounds[row + 1];
  }
  for (int64_t row = 0; row < tree.num_rows(); ++row) {
    packed.bounds[row + 1] += packed.bounds[row];
  }
  std::vector<int64_t> next(packed.bounds.begin(), packed.bounds.end() - 1);
  for (size_t item = 0; item < rows.size(); ++item) {
    packed.items[next[rows[item]]++] = static_cast<int64_t>(item);
  }
  return packed;
}

}  // namespace megalite::index
