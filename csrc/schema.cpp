// The library that the CPU and CUDA backends implement, and what the CPU backend alone has.
#include "schema.h"

TORCH_LIBRARY(megalite, m) {
  megalite::define_operators(m);
  m.def(
      "capped_attention(Tensor q, Tensor k, Tensor v, Tensor start, Tensor end, Tensor rows, "
      "Tensor keys, float scale, float dropout_p, int dropout_seed, Tensor? sample_ids, "
      "int head_offset, float score_cap) -> (Tensor, Tensor)");
  m.def(
      "capped_attention_backward(Tensor dout, Tensor q, Tensor k, Tensor v, Tensor out, "
      "Tensor lse, Tensor start, Tensor end, Tensor rows, Tensor keys, float scale, "
      "float dropout_p, int dropout_seed, Tensor? sample_ids, int head_offset, float score_cap) "
      "-> (Tensor, Tensor, Tensor)");
  m.def("row_products(Tensor x, Tensor weight, Tensor? bias) -> Tensor");
  m.def("draw(Tensor logits, Tensor uniform, float temperature) -> (Tensor, Tensor)");
}
