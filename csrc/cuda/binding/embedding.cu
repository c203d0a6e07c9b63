// The embedding of tokens on the CUDA backend, and with MEGALITE_SIMT on the emulator: checks, memory
// and launches around the kernels of csrc/cuda/rows/embedding.cuh.
#include <torch/library.h>

#include <tuple>

#include "checks.h"
#include "cuda/binding/optional.h"
#include "cuda/binding/tensors.h"
#include "cuda/rows/params.cuh"

namespace megalite {
namespace {

using at::Tensor;

template <class T>
bool has_vectors(int64_t width) {
  return width % (16 / static_cast<int64_t>(sizeof(T))) == 0;
}

Tensor embedded(const Tensor& weight, const Tensor& ids, int64_t offset, int64_t vocabulary) {
  check_embedding(weight, ids);
  const OnDevice guard("embedding", "weight", weight);
  const Tensor table = aligned(weight), numbers = ids.contiguous();
  const Tensor out = at::empty(embedded_sizes(ids, weight.size(1)), weight.options());
  with_type(weight.scalar_type(), [&](auto type) {
    using T = decltype(type);
    EmbeddingParams<T> p = {};
    p.num_ids = ids.numel(), p.width = static_cast<int>(weight.size(1));
    p.has_vectors = has_vectors<T>(p.width);
    p.offset = offset, p.height = weight.size(0), p.vocabulary = vocabulary;
    p.weight = read<T>(table), p.ids = read<int64_t>(numbers), p.out = view<T>(out);
    embedding(p, current_stream());
  });
  return out;
}

Tensor embedded_backward(const Tensor& dout, const Tensor& ids, int64_t offset, int64_t height) {
  check_embedding_gradient(dout, ids);
  const OnDevice guard("embedding_backward", "dout", dout);
  const Tensor up = aligned(dout);
  const auto [sorted, places] =
      ids.flatten().sort(/*stable=*/true, /*dim=*/0, /*descending=*/false);
  const Tensor gradient = at::zeros({height, dout.size(-1)}, dout.options());
  with_type(dout.scalar_type(), [&, &sorted = sorted, &places = places](auto type) {
    using T = decltype(type);
    EmbeddingGradientParams<T> p = {};
    p.num_ids = ids.numel(), p.width = static_cast<int>(dout.size(-1));
    p.has_vectors = has_vectors<T>(p.width);
    p.offset = offset, p.height = height;
    p.dout = read<T>(up), p.ids = read<int64_t>(sorted), p.places = read<int64_t>(places);
    p.gradient = view<T>(gradient);
    embedding_backward(p, current_stream());
  });
  return gradient;
}

}  // namespace
}  // namespace megalite

MEGALITE_REGISTER(m) {
  m.impl("embedding", megalite::embedded);
  m.impl("embedding_backward", megalite::embedded_backward);
}
