// Activations on the CUDA backend, and with MEGALITE_SIMT on the emulator: checks, memory and
// launches around the kernels of csrc/cuda/rows/activation.cuh.
#include <torch/library.h>

#include <algorithm>
#include <tuple>

#include "checks.h"
#include "cuda/binding/optional.h"
#include "cuda/binding/tensors.h"
#include "cuda/rows/params.cuh"

namespace megalite {
namespace {

using at::Tensor;
using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor>;

/// Whether rows [..., F] are whole vectors of 16 bytes.
template <class T>
bool has_vectors(int64_t width) {
  return width % (16 / static_cast<int64_t>(sizeof(T))) == 0;
}

Tensor activated(const Tensor& up, const MaybeTensor& gate, const MaybeTensor& up_bias,
                 const MaybeTensor& gate_bias, std::string_view kind) {
  check_activation({up, gate, up_bias, gate_bias});
  const OnDevice guard("activation", "up", up);
  const Tensor product = aligned(up), out = at::empty(up.sizes(), product.options());
  const MaybeTensor gates = aligned(gate), more = aligned(up_bias), gate_more = aligned(gate_bias);
  with_type(up.scalar_type(), [&](auto type) {
    using T = decltype(type);
    ActivationParams<T> p = {};
    p.kind = activation_called(kind);
    p.width = static_cast<int>(up.size(-1));
    p.num_rows = p.width == 0 ? 0 : up.numel() / p.width;
    p.has_vectors = has_vectors<T>(p.width);
    p.up = read<T>(product), p.gate = read_if<T>(gates);
    p.up_bias = read_if<T>(more), p.gate_bias = read_if<T>(gate_more);
    p.out = view<T>(out);
    activation(p, current_stream());
  });
  return out;
}

/// Parts of rows that fill the device with strips of columns: few where each writes sums.
int64_t parts_for(int64_t num_rows, int64_t strips) {
  constexpr int64_t kBlocksPerProcessor = 8;
  return std::clamp<int64_t>(kBlocksPerProcessor * num_processors() / strips, 1, num_rows);
}

Gradients activated_backward(const Tensor& dout, const Tensor& up, const MaybeTensor& gate,
                             const MaybeTensor& up_bias, const MaybeTensor& gate_bias,
                             std::string_view kind) {
  check_activation({up, gate, up_bias, gate_bias});
  check_tensor("activation_backward", "dout", dout, up.scalar_type(), up.sizes());
  check_device("activation_backward", "dout", dout, up.device());
  const OnDevice guard("activation_backward", "up", up);
  const Tensor rise = aligned(dout), product = aligned(up);
  const MaybeTensor gates = aligned(gate), more = aligned(up_bias), gate_more = aligned(gate_bias);
  const at::TensorOptions options = product.options();
  const auto like = [&](const MaybeTensor& x) {
    return at::empty(x ? x->sizes() : at::IntArrayRef({0}), options);
  };
  const Tensor dup = at::empty(up.sizes(), options), dgate = like(gate);
  const Tensor dup_bias = like(up_bias), dgate_bias = like(gate_bias);
  with_type(up.scalar_type(), [&](auto type) {
    using T = decltype(type);
    ActivationGradientParams<T> p = {};
    p.kind = activation_called(kind);
    p.width = static_cast<int>(up.size(-1));
    p.num_rows = p.width == 0 ? 0 : up.numel() / p.width;
    if (p.num_rows == 0) {
      dup_bias.zero_(), dgate_bias.zero_();
      return;
    }
    p.has_vectors = has_vectors<T>(p.width);
    const int64_t columns =
        kActivationThreads * (p.has_vectors ? 16 / static_cast<int64_t>(sizeof(T)) : 1);
    p.num_parts = static_cast<int>(parts_for(p.num_rows, (p.width + columns - 1) / columns));
    const auto new_parts = [&](const MaybeTensor& bias) {
      const int64_t count = bias ? p.num_parts : 0;
      return at::empty({count, p.width}, options.dtype(at::kFloat));
    };
    const Tensor up_parts = new_parts(up_bias), gate_parts = new_parts(gate_bias);
    p.dout = read<T>(rise), p.up = read<T>(product), p.gate = read_if<T>(gates);
    p.up_bias = read_if<T>(more), p.gate_bias = read_if<T>(gate_more);
    p.dup = view<T>(dup), p.dgate = view_if<T>(dgate);
    p.up_parts = view_if<float>(up_parts), p.gate_parts = view_if<float>(gate_parts);
    activation_backward(p, current_stream());
    sum_parts<T>({up_parts, gate_parts}, {dup_bias, dgate_bias});
  });
  return {dup, dgate, dup_bias, dgate_bias};
}

}  // namespace
}  // namespace megalite

MEGALITE_REGISTER(m) {
  m.impl("activation", megalite::activated);
  m.impl("activation_backward", megalite::activated_backward);
}
