// SPDX-License-Identifier: MIT
// enqueue_ on CUDA, for Python: addresses and sizes, which mixfast/ops/enqueue/gpu_cuda.py has checked, with a device
// and a stream.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <string>
#include <vector>

#include "enqueue/cuda.h"

namespace {

namespace py = pybind11;
using Integers = std::vector<int64_t>;

template <class T = void>
T* pointer(int64_t address) {
  return reinterpret_cast<T*>(address);
}

void enqueue(const Integers& queues, const Integers& sizes, int queue_type, const Integers& keys, const Integers& rows,
             int key_type, const Integers& pointers, int64_t dim, bool normalize, int device, uintptr_t stream) {
  const py::gil_scoped_release release;
  mixfast::enqueue::Call call = {
      {}, static_cast<mixfast::Type>(queue_type), static_cast<mixfast::Type>(key_type), dim, normalize};
  for (size_t q = 0; q < queues.size(); ++q) {
    call.rings.push_back({pointer(queues[q]), pointer(keys[q]), pointer<int64_t>(pointers[q]), sizes[q], rows[q]});
  }
  const char* const error = mixfast::gpu::enqueue::run({device, reinterpret_cast<void*>(stream)}, call);
  if (error) throw std::runtime_error(std::string("enqueue_: CUDA says: ") + error);
}

}  // namespace

void bind_enqueue(py::module_& m) { m.def("enqueue", &enqueue); }
