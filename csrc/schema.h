// The operators of megalite, and nothing else. Shapes and meaning: docs/design.md.
#pragma once

#include <torch/library.h>

namespace megalite {

inline void define_operators(torch::Library& m) {
  m.def("mask_plan(Tensor start, Tensor end, int num_keys) -> (Tensor, Tensor)");
  m.def(
      "attention(Tensor q, Tensor k, Tensor v, Tensor start, Tensor end, Tensor rows, Tensor keys, "
      "Tensor? bias, float scale, float dropout_p, int dropout_seed, Tensor? sample_ids, "
      "int head_offset) -> (Tensor, Tensor)");
  m.def(
      "attention_backward(Tensor dout, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, "
      "Tensor start, Tensor end, Tensor rows, Tensor keys, Tensor? bias, float scale, "
      "float dropout_p, int dropout_seed, Tensor? sample_ids, int head_offset, bool needs_dbias) "
      "-> (Tensor, Tensor, Tensor, Tensor)");
  m.def("logit_statistics(Tensor logits, Tensor labels, int offset) -> Tensor");
  m.def(
      "logit_gradient(Tensor(a!) gradient, Tensor logits, Tensor lse, Tensor labels, "
      "Tensor upstream, int offset, int vocabulary, float label_smoothing, float z_loss) -> ()");
  m.def("rope(Tensor x, Tensor cos, Tensor sin, bool interleaved, bool inverse) -> Tensor");
  m.def("rope_(Tensor(a!) x, Tensor cos, Tensor sin, bool interleaved, bool inverse) -> ()");
  m.def(
      "dropout(Tensor x, float p, int seed, Tensor sample_ids, int position_offset, "
      "int feature_offset) -> Tensor");
  m.def(
      "add_norm(Tensor x, Tensor? update, Tensor weight, Tensor? bias, float eps, bool centred, "
      "float weight_offset, float residual_scale, float dropout_p, int dropout_seed, "
      "Tensor? sample_ids, int position_offset) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "add_norm_backward(Tensor dout, Tensor? dsum, Tensor sum, Tensor weight, Tensor mean, "
      "Tensor inverse, float weight_offset, float residual_scale, float dropout_p, "
      "int dropout_seed, Tensor? sample_ids, int position_offset, bool has_update, bool has_bias) "
      "-> (Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "activation(Tensor up, Tensor? gate, Tensor? up_bias, Tensor? gate_bias, str kind) -> "
      "Tensor");
  m.def(
      "activation_backward(Tensor dout, Tensor up, Tensor? gate, Tensor? up_bias, "
      "Tensor? gate_bias, str kind) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def("embedding(Tensor weight, Tensor ids, int offset, int vocabulary) -> Tensor");
  m.def("embedding_backward(Tensor dout, Tensor ids, int offset, int height) -> Tensor");
  m.def(
      "paged_attention(Tensor q, Tensor k, Tensor v, Tensor tables, Tensor start, Tensor end, "
      "Tensor? bias, int most_keys, float scale, float score_cap) -> Tensor");
  m.def("dequantised(Tensor codes, Tensor scales, int width, ScalarType dtype) -> Tensor");
}

}  // namespace megalite
