// What benchmarks/schedule.py asks: how the kernels' host code divides work on the emulated device.
#include <pybind11/pybind11.h>

#include "cuda/attention/params.cuh"
#include "simt/machine.h"

namespace py = pybind11;
namespace simt = megalite::simt;

namespace {

/// How attention's backward pass of sm_80 and later divides its work.
py::dict attention_backward_schedule(int batch, int queries, int keys, int heads, int groups,
                                     int head_dim, bool has_bias) {
  if (simt::machine.architecture < 80)
    throw py::value_error(
        "attention_backward_schedule: the device must have architecture 80 or 86");
  if (groups < 1 || heads % groups != 0 || head_dim < 8 || head_dim > 256 || batch < 1 || keys < 1)
    throw py::value_error("attention_backward_schedule: no shape of attention");
  static const float bias = 0.0f;
  megalite::AttentionParams<megalite::half> p = {};
  p.batch = batch, p.queries = queries, p.keys = keys;
  p.heads = heads, p.groups = groups, p.head_dim = head_dim;
  if (has_bias) p.bias = {&bias, 1};
  const bool is_small = head_dim > 64 && simt::machine.shared_limit() < 163 * 1024;
  const megalite::BackwardSchedule s =
      is_small ? megalite::attention_backward_schedule_sm86(p, has_bias)
               : megalite::attention_backward_schedule_sm80(p, has_bias);
  py::dict d;
  d["rows"] = s.rows, d["keys"] = s.keys, d["blocks_per_sm"] = s.blocks_per_sm;
  d["together"] = s.together, d["parts"] = s.parts, d["slots"] = s.slots;
  d["fine_tiles"] = s.fine_tiles, d["levels"] = s.levels;
  d["partial_bytes"] = s.partial_bytes, d["scratch_bytes"] = s.scratch_bytes;
  return d;
}

}  // namespace

void bind_schedule(py::module_& m);

void bind_schedule(py::module_& m) {
  m.def(
      "attention_backward_schedule", &attention_backward_schedule, py::arg("batch"),
      py::arg("queries"), py::arg("keys"), py::arg("heads"), py::arg("groups"), py::arg("head_dim"),
      py::arg("has_bias") = false,
      "How the blocks of attention's backward pass divide the work on the emulated device: rows "
      "and keys of a tile, blocks_per_sm, the tiles of keys that are together in order, parts of "
      "a tile, fine_tiles that are divided further and how often (levels), slots of partial sums, "
      "partial_bytes and scratch_bytes.");
}
