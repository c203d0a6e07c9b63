// The Python module megalite._index: which tokens, documents and datasets make up a sample.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>

#include "index/blend.h"
#include "index/documents.h"
#include "index/packing.h"

namespace py = pybind11;
namespace data = megalite::index;

namespace {

using Array = py::array_t<int64_t, py::array::c_style>;

int64_t size_of(const char* name, const Array& array) {
  if (array.ndim() != 1) {
    throw std::invalid_argument(std::string(name) + ": must have one dimension, came " +
                                std::to_string(array.ndim()));
  }
  return array.shape(0);
}

// A DocumentIndex and the array whose lengths it reads.
class Documents {
 public:
  Documents(Array lengths, int64_t longest)
      : lengths_(std::move(lengths)),
        index_(lengths_.data(), size_of("lengths", lengths_), longest) {}

  const data::DocumentIndex& index() const { return index_; }

 private:
  Array lengths_;
  data::DocumentIndex index_;
};

Array to_array(const std::vector<data::Range>& ranges) {
  Array array({static_cast<py::ssize_t>(ranges.size()), py::ssize_t{3}});
  std::copy(ranges.begin(), ranges.end(), reinterpret_cast<data::Range*>(array.mutable_data()));
  return array;
}

Array to_array(const std::vector<int64_t>& values) {
  return Array(static_cast<py::ssize_t>(values.size()), values.data());
}

py::tuple first_fit(const Array& lengths, int64_t capacity, std::optional<Array> encoder_lengths,
                    int64_t encoder_capacity) {
  const int64_t count = size_of("lengths", lengths);
  if (encoder_lengths && size_of("encoder_lengths", *encoder_lengths) != count) {
    throw std::invalid_argument("encoder_lengths: must be as many as lengths, " +
                                std::to_string(count));
  }
  std::vector<data::Lengths> items(count);
  for (int64_t i = 0; i < count; ++i) {
    items[i] = {lengths.data()[i], encoder_lengths ? encoder_lengths->data()[i] : 0};
  }
  data::Rows rows;
  {
    py::gil_scoped_release released;
    rows = data::first_fit(items, {capacity, encoder_capacity});
  }
  return py::make_tuple(to_array(rows.items), to_array(rows.bounds));
}

}  // namespace

PYBIND11_MODULE(_index, m) {
  m.doc() = "The data's index: sample index, blending, packing. csrc/index says how.";
  py::class_<Documents>(m, "DocumentIndex")
      .def(py::init<Array, int64_t>(), py::arg("lengths").noconvert(), py::arg("longest") = 1,
           "Index documents of these lengths, int64 [documents], cut into pieces of `longest`.")
      .def_property_readonly("num_tokens",
                             [](const Documents& d) { return d.index().num_tokens(); })
      .def_property_readonly("num_pieces",
                             [](const Documents& d) { return d.index().num_pieces(); })
      .def(
          "token_ranges",
          [](const Documents& d, int64_t first, int64_t last) {
            return to_array(d.index().token_ranges(first, last));
          },
          py::arg("first"), py::arg("last"),
          "Parts (document, first, end) that make up tokens [first, last): int64 [n, 3].")
      .def(
          "piece_ranges",
          [](const Documents& d, int64_t first, int64_t last) {
            return to_array(d.index().piece_ranges(first, last));
          },
          py::arg("first"), py::arg("last"),
          "Pieces [first, last) as (document, first, end): int64 [last - first, 3].");
  py::class_<data::Blend>(m, "Blend")
      .def(py::init<std::vector<int64_t>>(), py::arg("counts"),
           "Interleave datasets of these numbers of samples evenly.")
      .def("__len__", &data::Blend::size)
      .def("at", &data::Blend::at, py::arg("number"), "Its (dataset, sample inside it).");
  m.def(
      "first_fit", &first_fit, py::arg("lengths"), py::arg("capacity"),
      py::arg("encoder_lengths") = py::none(), py::arg("encoder_capacity") = 0,
      "Put items into rows, each into the first with room in both streams: (items, bounds), row r "
      "being items[bounds[r]:bounds[r + 1]].");
}
