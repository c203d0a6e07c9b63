// Activations on the CPU: checks, memory and threads around the kernels.
#include <torch/library.h>

#include <optional>
#include <tuple>

#include "checks.h"
#include "cpu/instruction_set.h"
#include "cpu/parts.h"
#include "cpu/threads.h"

namespace megalite::cpu {
namespace {

using at::Tensor;
using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor>;

/// What both passes read, in fp32.
struct Inputs {
  Tensor up;
  MaybeTensor gate, up_bias, gate_bias;
  at::ScalarType type;

  ActivationRows rows(std::string_view kind) const {
    ActivationRows p = {};
    p.kind = activation_called(kind);
    p.width = up.size(-1), p.num_rows = p.width == 0 ? 0 : up.numel() / p.width;
    p.up = up.data_ptr<float>(), p.gate = data_if(gate);
    p.up_bias = data_if(up_bias), p.gate_bias = data_if(gate_bias);
    return p;
  }
};

Inputs checked(const Tensor& up, const MaybeTensor& gate, const MaybeTensor& up_bias,
               const MaybeTensor& gate_bias) {
  check_activation({up, gate, up_bias, gate_bias});
  return {floats(up), floats(gate), floats(up_bias), floats(gate_bias), up.scalar_type()};
}

Tensor activation(const Tensor& up, const MaybeTensor& gate, const MaybeTensor& up_bias,
                  const MaybeTensor& gate_bias, std::string_view kind) {
  const Inputs inputs = checked(up, gate, up_bias, gate_bias);
  const Tensor out = new_floats(up.sizes());
  ActivationRows p = inputs.rows(kind);
  p.out = out.data_ptr<float>();
  each_row(p.num_rows, p.width, [&](int64_t i) { kernels().activation(p, i); });
  return out.to(inputs.type);
}

Gradients activation_backward(const Tensor& dout, const Tensor& up, const MaybeTensor& gate,
                              const MaybeTensor& up_bias, const MaybeTensor& gate_bias,
                              std::string_view kind) {
  const Inputs inputs = checked(up, gate, up_bias, gate_bias);
  check_tensor("activation_backward", "dout", dout, up.scalar_type(), up.sizes());
  const Tensor rise = floats(dout), dup = new_floats(up.sizes());
  const Tensor dgate = gate ? new_floats(up.sizes()) : new_floats({0});
  ActivationRows p = inputs.rows(kind);
  const int64_t chunks = (p.num_rows + kChunkRows - 1) / kChunkRows;
  const Tensor up_parts = new_floats({up_bias ? chunks : 0, p.width});
  const Tensor gate_parts = new_floats({gate_bias ? chunks : 0, p.width});
  p.dout = rise.data_ptr<float>(), p.dup = dup.data_ptr<float>(), p.dgate = data_if(dgate);
  p.up_parts = data_if(up_parts), p.gate_parts = data_if(gate_parts), p.chunk_rows = kChunkRows;
  each(chunks, [&](int64_t i) { kernels().activation_gradient(p, i); });
  const auto summed = [&](const MaybeTensor& bias, const Tensor& parts) {
    return bias ? sum_of_parts(parts, inputs.type) : at::empty({0}, inputs.type);
  };
  return {dup.to(inputs.type), dgate.to(inputs.type), summed(up_bias, up_parts),
          summed(gate_bias, gate_parts)};
}

}  // namespace

TORCH_LIBRARY_IMPL(megalite, CPU, m) {
  m.impl("activation", activation);
  m.impl("activation_backward", activation_backward);
}

}  // namespace megalite::cpu
