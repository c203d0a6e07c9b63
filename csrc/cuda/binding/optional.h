// Tensors that may not be there, as the kernels see them, and the sums of parts of gradients.
#pragma once

#include <array>
#include <optional>

#include "cuda/binding/tensors.h"
#include "cuda/rows/params.cuh"

namespace megalite {

using MaybeTensor = std::optional<at::Tensor>;

/// x, or a copy that is contiguous and begins at a multiple of 16 bytes: how a sum is divided among
/// threads, and so its bits, doesn't depend on where the memory begins.
inline at::Tensor aligned(const at::Tensor& x) {
  const at::Tensor rows = x.contiguous();
  return misalignment(rows) == 0 ? rows : rows.clone();
}
inline MaybeTensor aligned(const MaybeTensor& x) {
  return x ? MaybeTensor(aligned(*x)) : MaybeTensor();
}

template <class T>
Global<const T> read_if(const MaybeTensor& x) {
  return x ? read<T>(*x) : Global<const T>();
}

/// A tensor whose emptiness says that it is not there.
template <class T>
Global<T> view_if(const at::Tensor& x) {
  return x.numel() == 0 ? Global<T>() : view<T>(x);
}

/// Add up one or two parts [P, D] fp32, of equal shapes, to [D]; those that are empty are not there.
template <class T>
void sum_parts(const std::array<at::Tensor, 2>& parts, const std::array<at::Tensor, 2>& sums) {
  ColumnSums<T> p = {};
  int pairs = 0;
  for (int i = 0; i < 2; ++i) {
    if (parts[i].numel() == 0) continue;
    p.num_parts = static_cast<int>(parts[i].size(0)), p.width = static_cast<int>(parts[i].size(1));
    p.parts[pairs] = read<float>(parts[i]), p.out[pairs] = view<T>(sums[i]);
    ++pairs;
  }
  if (pairs > 0) column_sums(p, current_stream());
}

}  // namespace megalite
