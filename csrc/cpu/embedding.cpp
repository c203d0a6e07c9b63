// The embedding of tokens on the CPU, and its gradient.
// Tested by: tests/kernels/test_embedding.py.
#include <torch/library.h>

#include <algorithm>
#include <cstring>
#include <numeric>
#include <vector>

#include "checks.h"
#include "cpu/parts.h"

namespace megalite::cpu {
namespace {

using at::Tensor;

/// The row of a slice [offset, offset + height) of the vocabulary for each id; -1: of another slice.
std::vector<int64_t> places(const Tensor& ids, int64_t offset, int64_t height) {
  const Tensor numbers = ids.contiguous();
  const int64_t* from = numbers.data_ptr<int64_t>();
  std::vector<int64_t> found(numbers.numel());
  for (size_t i = 0; i < found.size(); ++i) {
    const int64_t place = from[i] - offset;
    found[i] = place >= 0 && place < height ? place : -1;
  }
  return found;
}

void check_bounds(const Tensor& ids, int64_t vocabulary) {
  const Tensor numbers = ids.contiguous();
  const int64_t* from = numbers.data_ptr<int64_t>();
  for (int64_t i = 0; i < numbers.numel(); ++i)
    TORCH_CHECK_INDEX(from[i] >= 0 && from[i] < vocabulary, "embedding ids: must be in [0, ",
                      vocabulary, "), came ", from[i], " in place ", i);
}

Tensor embedding(const Tensor& weight, const Tensor& ids, int64_t offset, int64_t vocabulary) {
  check_embedding(weight, ids);
  check_bounds(ids, vocabulary);
  const Tensor rows = weight.contiguous();
  const std::vector<int64_t> place = places(ids, offset, weight.size(0));
  const Tensor out = at::empty(embedded_sizes(ids, weight.size(1)), weight.options());
  const int64_t bytes = weight.size(1) * weight.element_size();
  const char* from = static_cast<const char*>(rows.data_ptr());
  char* to = static_cast<char*>(out.data_ptr());
  each_row(ids.numel(), weight.size(1), [&](int64_t i) {
    if (place[i] < 0)
      std::memset(to + i * bytes, 0, bytes);
    else
      std::memcpy(to + i * bytes, from + place[i] * bytes, bytes);
  });
  return out;
}

/// The rows of a token are added one after the other, in the order of their places.
Tensor embedding_backward(const Tensor& dout, const Tensor& ids, int64_t offset, int64_t height) {
  check_embedding_gradient(dout, ids);
  const Tensor up = floats(dout);
  const int64_t width = dout.size(-1);
  const std::vector<int64_t> place = places(ids, offset, height);
  std::vector<int64_t> order(place.size()), first;
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int64_t a, int64_t b) { return place[a] < place[b]; });
  for (size_t i = 0; i < order.size(); ++i) {
    const bool begins = i == 0 || place[order[i]] != place[order[i - 1]];
    if (begins && place[order[i]] >= 0) first.push_back(static_cast<int64_t>(i));
  }
  const Tensor gradient = at::zeros({height, width}, at::kFloat);
  const float* from = up.data_ptr<float>();
  float* to = gradient.data_ptr<float>();
  const auto count = static_cast<int64_t>(order.size());
  each_row(static_cast<int64_t>(first.size()), width, [&](int64_t token) {
    const int64_t row = place[order[first[token]]];
    for (int64_t i = first[token]; i < count && place[order[i]] == row; ++i) {
      const float* more = from + order[i] * width;
      for (int64_t d = 0; d < width; ++d) to[row * width + d] += more[d];
    }
  });
  return gradient.to(dout.scalar_type());
}

}  // namespace

TORCH_LIBRARY_IMPL(megalite, CPU, m) {
  m.impl("embedding", embedding);
  m.impl("embedding_backward", embedding_backward);
}

}  // namespace megalite::cpu
