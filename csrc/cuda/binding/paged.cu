// Attention over keys and values in blocks on the CUDA backend, and with MEGALITE_SIMT on the
// emulator: checks, memory and launches around the kernels of csrc/cuda/attention/paged.cuh.
#include <torch/library.h>

#include "checks.h"
#include "cuda/attention/params.cuh"
#include "cuda/binding/optional.h"
#include "cuda/binding/tensors.h"

namespace megalite {
namespace {

using at::Tensor;

Tensor paged(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& tables,
             const Tensor& start, const Tensor& end, const MaybeTensor& bias, int64_t most_keys,
             double scale, double score_cap) {
  check_paged({q, k, v, tables, start, end, bias}, most_keys);
  const int64_t vector = 16 / q.element_size();
  TORCH_CHECK(q.size(2) % vector == 0 && q.size(2) <= 256,
              "paged_attention q: the head dimension must be ", vector, " to 256 in steps of ",
              vector, ", came ", q.size(2));
  TORCH_CHECK(score_cap == 0, "paged_attention score_cap: must be 0 on a GPU, came ", score_cap);
  TORCH_CHECK(misalignment(k) == 0 && misalignment(v) == 0,
              "paged_attention k, v: must begin at a multiple of 16 bytes");
  const OnDevice guard("paged_attention", "q", q);
  const Tensor queries = aligned(q), out = at::empty(q.sizes(), queries.options());
  const int64_t splits = (most_keys + kSplitKeys - 1) / kSplitKeys;
  const at::TensorOptions floats = q.options().dtype(at::kFloat);
  const Tensor sums = at::empty({splits, q.size(0), q.size(1), q.size(2)}, floats);
  const Tensor tops = at::empty({splits, q.size(0), q.size(1), 2}, floats);
  with_type(q.scalar_type(), [&](auto type) {
    using T = decltype(type);
    PagedParams<T> p = {};
    p.batch = static_cast<int>(q.size(0)), p.heads = static_cast<int>(q.size(1));
    p.head_dim = static_cast<int>(q.size(2)), p.groups = static_cast<int>(k.size(1));
    p.num_blocks = k.size(0), p.block_rows = static_cast<int>(k.size(2));
    p.table_size = static_cast<int>(tables.size(1)), p.most_keys = most_keys;
    p.num_splits = static_cast<int>(splits);
    p.q = read<T>(queries), p.k = read<T>(k), p.v = read<T>(v);
    p.tables = read<int32_t>(tables), p.start = read<int32_t>(start), p.end = read<int32_t>(end);
    p.bias = read_if<float>(bias), p.scale = static_cast<float>(scale);
    p.out = view<T>(out), p.sums = view<float>(sums), p.tops = view<float>(tops);
    paged_attention(p, current_stream());
  });
  return out;
}

}  // namespace
}  // namespace megalite

MEGALITE_REGISTER(m) { m.impl("paged_attention", megalite::paged); }
