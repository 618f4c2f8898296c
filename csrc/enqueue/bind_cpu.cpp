// SPDX-License-Identifier: MIT
// enqueue_ on CPU, for Python: addresses and sizes, which mixfast/ops/enqueue/cpu_native.py has checked.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <vector>

#include "enqueue/cpu.h"

namespace {

namespace py = pybind11;
using Integers = std::vector<int64_t>;

template <class T = void>
T* pointer(int64_t address) {
  return reinterpret_cast<T*>(address);
}

void enqueue(const Integers& queues, const Integers& sizes, int queue_type, const Integers& keys, const Integers& rows,
             int key_type, const Integers& pointers, int64_t dim, bool normalize, int threads) {
  const py::gil_scoped_release release;
  mixfast::enqueue::Call call = {
      {}, static_cast<mixfast::Type>(queue_type), static_cast<mixfast::Type>(key_type), dim, normalize};
  for (size_t q = 0; q < queues.size(); ++q) {
    call.rings.push_back({pointer(queues[q]), pointer(keys[q]), pointer<int64_t>(pointers[q]), sizes[q], rows[q]});
  }
  mixfast::enqueue::run(call, threads);
}

}  // namespace

void bind_enqueue(py::module_& m) { m.def("enqueue", &enqueue); }
