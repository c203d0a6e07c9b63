// The Python module megalite._simt: the emulator's settings and counters. The operators that run on
// it are registered in csrc/cuda/binding, together with the CUDA backend's.
#include <dlfcn.h>
#include <pybind11/pybind11.h>

#include "simt/machine.h"

namespace py = pybind11;

namespace simt = megalite::simt;

/// Of a module that has kernels (schedule.cpp); the emulator alone has none.
__attribute__((weak)) void bind_schedule(py::module_& m);

namespace {

py::dict to_dict(const simt::Counters& c) {
  py::dict d;
  d["launches"] = c.launches;
  d["blocks"] = c.blocks;
  d["barriers"] = c.barriers;
  d["global_read_bytes"] = c.global_read_bytes;
  d["global_write_bytes"] = c.global_write_bytes;
  d["shared_read_bytes"] = c.shared_read_bytes;
  d["shared_write_bytes"] = c.shared_write_bytes;
  d["mma_m16n8k16"] = c.mma_m16n8k16;
  d["mma_m8n8k4"] = c.mma_m8n8k4;
  d["ldmatrix"] = c.ldmatrix;
  d["shuffles"] = c.shuffles;
  d["ldmatrix_conflicts"] = c.ldmatrix_conflicts;
  d["shared_wavefronts"] = c.shared_wavefronts;
  d["shared_conflicts"] = c.shared_conflicts;
  return d;
}

py::dict counters() {
  py::dict d;
  for (const auto& [name, values] : simt::machine.counters_by_kernel) {
    d[py::str(name)] = to_dict(values);
  }
  return d;
}

/// Threads and bytes of shared memory of each kernel launched so far, by its mangled name, which is
/// also the name that CUDA's compilers give it.
py::dict shapes() {
  py::dict d;
  for (const auto& [kernel, shape] : simt::machine.shapes_by_kernel) {
    Dl_info info;
    if (dladdr(kernel, &info) == 0 || info.dli_sname == nullptr) {
      throw std::runtime_error("shapes: a kernel has no name: build it with default visibility");
    }
    d[py::str(info.dli_sname)] = py::make_tuple(shape.threads, shape.shared_bytes);
  }
  return d;
}

void set_architecture(int capability) {
  if (capability != 70 && capability != 80 && capability != 86) {
    throw py::value_error("set_architecture: must be 70, 80 or 86, came " +
                          std::to_string(capability));
  }
  simt::machine.architecture = capability;
}

}  // namespace

PYBIND11_MODULE(_simt, m) {
  m.doc() = "The SIMT emulator: settings and counters. docs/simt.md says what it checks.";
  py::register_exception<simt::KernelError>(m, "KernelError", PyExc_RuntimeError);
  m.def(
      "set_seed", [](uint64_t seed) { simt::machine.seed = seed; }, py::arg("seed"),
      "Choose the order in which the blocks, warps and lanes of later launches run.");
  m.def(
      "count_banks", [](bool enabled) { simt::machine.count_banks = enabled; }, py::arg("enabled"),
      "Count the bank conflicts of shared-memory accesses too; slower.");
  m.def("set_architecture", &set_architecture, py::arg("capability"),
        "The compute capability of the emulated device: 70, 80 or 86.");
  if (bind_schedule != nullptr) bind_schedule(m);
  m.def("counters", &counters, "What each kernel did since the last reset, by name.");
  m.def("shapes", &shapes, "(threads, shared bytes) of each kernel launched, by mangled name.");
  m.def("reset_counters", [] { simt::machine.counters_by_kernel.clear(); }, "Clear all counters.");
}
