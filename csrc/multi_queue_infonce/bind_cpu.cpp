// SPDX-License-Identifier: MIT
// multi_queue_infonce on CPU, for Python: addresses and sizes, which mixfast/ops/multi_queue_infonce/cpu_native.py has
// checked.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <vector>

#include "multi_queue_infonce/cpu.h"

namespace {

namespace py = pybind11;
using namespace mixfast;
using namespace mixfast::infonce;
using Address = uintptr_t;
using Integers = std::vector<int64_t>;

void* pointer(Address address) { return reinterpret_cast<void*>(address); }

Matrix matrix(Address data, int64_t rows, int64_t row_stride, int64_t column_stride, int type) {
  return {pointer(data), rows, row_stride, column_stride, static_cast<Type>(type)};
}

void infonce_forward(const Integers& rows, const Integers& queries, const Integers& query_strides,
                     const Integers& positives, const Integers& positive_strides, const Integers& queue_index,
                     const std::vector<double>& temperatures, int type, const Integers& queues,
                     const Integers& queue_rows, const Integers& queue_strides, const Integers& queue_column_strides,
                     int queue_type, int64_t dim, int reduction, Address losses, Address grad_queries,
                     Address negative_share, int threads, int isa) {
  py::gil_scoped_release release;
  Forward call = {{},
                  {},
                  dim,
                  static_cast<Reduction>(reduction),
                  pointer(losses),
                  pointer(grad_queries),
                  pointer(negative_share),
                  threads,
                  static_cast<Isa>(isa)};
  for (size_t t = 0; t < rows.size(); ++t) {
    call.terms.push_back({matrix(queries[t], rows[t], query_strides[t], 1, type),
                          matrix(positives[t], rows[t], positive_strides[t], 1, type), static_cast<int>(queue_index[t]),
                          temperatures[t]});
  }
  for (size_t i = 0; i < queues.size(); ++i) {
    call.queues.push_back(matrix(queues[i], queue_rows[i], queue_strides[i], queue_column_strides[i], queue_type));
  }
  forward(call);
}

void infonce_backward(const Integers& rows, const Integers& queries, const Integers& query_strides,
                      const std::vector<double>& temperatures, int type, int64_t dim, int reduction,
                      Address grad_losses, int64_t grad_stride, Address grad_queries, Address negative_share,
                      Address d_queries, Address d_positives, Address d_temperature, int threads) {
  py::gil_scoped_release release;
  Backward call = {{},
                   dim,
                   static_cast<Reduction>(reduction),
                   pointer(grad_losses),
                   grad_stride,
                   pointer(grad_queries),
                   pointer(negative_share),
                   pointer(d_queries),
                   pointer(d_positives),
                   pointer(d_temperature),
                   threads};
  for (size_t t = 0; t < rows.size(); ++t) {
    call.terms.push_back({matrix(queries[t], rows[t], query_strides[t], 1, type), {}, 0, temperatures[t]});
  }
  backward(call);
}

std::vector<int> infonce_instruction_sets() {
  std::vector<int> names;
  for (const Isa isa : instruction_sets()) names.push_back(static_cast<int>(isa));
  return names;
}

}  // namespace

void bind_multi_queue_infonce(py::module_& m) {
  m.def("infonce_forward", &infonce_forward);
  m.def("infonce_backward", &infonce_backward);
  m.def("infonce_instruction_sets", &infonce_instruction_sets);
}
