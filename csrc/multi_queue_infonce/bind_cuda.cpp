// SPDX-License-Identifier: MIT
// multi_queue_infonce on CUDA, for Python: addresses and sizes, which mixfast/ops/multi_queue_infonce/gpu_cuda.py has
// checked, with a device and a stream.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <string>
#include <vector>

#include "multi_queue_infonce/cuda.h"

namespace {

namespace py = pybind11;
using namespace mixfast::gpu::infonce;
using Address = uintptr_t;
using Integers = std::vector<int64_t>;

template <class T = void>
T* pointer(Address address) {
  return reinterpret_cast<T*>(address);
}

void raise_if(const char* error) {
  if (error) throw std::runtime_error(std::string("multi_queue_infonce: backend cuda: ") + error);
}

int64_t infonce_workspace(const Integers& rows, const Integers& queue_index, const Integers& keys, int64_t dim,
                          int factors, bool need_grad, int reduction) {
  return workspace_floats(rows, queue_index, keys, dim, static_cast<Factors>(factors), need_grad,
                          static_cast<Reduction>(reduction));
}

void infonce_forward(const Integers& rows, const Integers& queries, const Integers& query_strides,
                     const Integers& positives, const Integers& positive_strides, const Integers& queue_index,
                     const std::vector<double>& temperatures, Address temperature, int64_t temperature_stride,
                     int temperature_type, int type, const Integers& queues, const Integers& keys,
                     const Integers& queue_strides, const Integers& queue_column_strides, int queue_type,
                     Address valid_len, int64_t dim, int reduction, int factors, Address losses, Address grad_queries,
                     Address negative_share, Address workspace, int device, Address stream) {
  const py::gil_scoped_release release;
  const auto row_type = static_cast<Type>(type), key_type = static_cast<Type>(queue_type);
  Forward call = {{},
                  {},
                  pointer<const int64_t>(valid_len),
                  {pointer(temperature), temperature_stride, static_cast<Type>(temperature_type)},
                  dim,
                  static_cast<Reduction>(reduction),
                  static_cast<Factors>(factors),
                  pointer<float>(losses),
                  pointer<float>(grad_queries),
                  pointer<float>(negative_share),
                  pointer<float>(workspace)};
  for (size_t t = 0; t < rows.size(); ++t) {
    call.terms.push_back({{pointer(queries[t]), rows[t], query_strides[t], 1, row_type},
                          {pointer(positives[t]), rows[t], positive_strides[t], 1, row_type},
                          static_cast<int>(queue_index[t]),
                          temperature ? 0.0 : temperatures[t]});
  }
  for (size_t i = 0; i < queues.size(); ++i)
    call.queues.push_back({pointer(queues[i]), keys[i], queue_strides[i], queue_column_strides[i], key_type});
  raise_if(forward({device, pointer(stream)}, call));
}

void infonce_backward(const Integers& rows, const Integers& queries, const Integers& query_strides,
                      const std::vector<double>& temperatures, Address temperature, int64_t temperature_stride,
                      int temperature_type, int type, int64_t dim, int reduction, Address grad_losses,
                      int64_t grad_stride, Address grad_queries, Address negative_share, Address d_queries,
                      Address d_positives, Address d_temperature, int device, Address stream) {
  const py::gil_scoped_release release;
  Backward call = {{},
                   {pointer(temperature), temperature_stride, static_cast<Type>(temperature_type)},
                   dim,
                   static_cast<Reduction>(reduction),
                   pointer<const float>(grad_losses),
                   grad_stride,
                   pointer<const float>(grad_queries),
                   pointer<const float>(negative_share),
                   pointer(d_queries),
                   pointer(d_positives),
                   pointer<float>(d_temperature)};
  for (size_t t = 0; t < rows.size(); ++t) {
    call.terms.push_back({{pointer(queries[t]), rows[t], query_strides[t], 1, static_cast<Type>(type)},
                          {},
                          0,
                          temperature ? 0.0 : temperatures[t]});
  }
  raise_if(backward({device, pointer(stream)}, call));
}

}  // namespace

void bind_multi_queue_infonce(py::module_& m) {
  m.def("infonce_workspace", &infonce_workspace);
  m.def("infonce_forward", &infonce_forward);
  m.def("infonce_backward", &infonce_backward);
}
