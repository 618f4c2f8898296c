// SPDX-License-Identifier: MIT
// nt_xent on CPU, for Python: addresses and sizes, which mixfast/ops/ntxent/cpu_native.py has checked.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <vector>

#include "ntxent/cpu.h"

namespace {

namespace py = pybind11;
using namespace mixfast;
using namespace mixfast::ntxent;
using Address = uintptr_t;

void* pointer(Address address) { return reinterpret_cast<void*>(address); }

Views views(Address first, int64_t first_stride, Address second, int64_t second_stride, int type, int64_t rows,
            int64_t dim, Address excluded, double temperature) {
  const auto view = [&](Address data, int64_t stride) {
    return Matrix{pointer(data), rows, stride, 1, static_cast<Type>(type)};
  };
  return {view(first, first_stride), view(second, second_stride), dim, static_cast<const int64_t*>(pointer(excluded)),
          temperature};
}

int64_t nt_xent_forward(Address first, int64_t first_stride, Address second, int64_t second_stride, int type,
                        int64_t rows, int64_t dim, Address excluded, double temperature, int reduction, Address losses,
                        Address denominators, Address shares, int threads, int isa) {
  py::gil_scoped_release release;
  return forward({views(first, first_stride, second, second_stride, type, rows, dim, excluded, temperature),
                  static_cast<Reduction>(reduction), pointer(losses), pointer(denominators), pointer(shares), threads,
                  static_cast<Isa>(isa)});
}

void nt_xent_backward(Address first, int64_t first_stride, Address second, int64_t second_stride, int type,
                      int64_t rows, int64_t dim, Address excluded, double temperature, int reduction,
                      Address grad_losses, int64_t grad_stride, Address denominators, Address shares, Address d_rows,
                      Address d_temperature, int threads, int isa) {
  py::gil_scoped_release release;
  backward({views(first, first_stride, second, second_stride, type, rows, dim, excluded, temperature),
            static_cast<Reduction>(reduction), pointer(grad_losses), grad_stride, pointer(denominators),
            pointer(shares), pointer(d_rows), pointer(d_temperature), threads, static_cast<Isa>(isa)});
}

std::vector<int> nt_xent_instruction_sets() {
  std::vector<int> names;
  for (const Isa isa : instruction_sets()) names.push_back(static_cast<int>(isa));
  return names;
}

}  // namespace

void bind_nt_xent(py::module_& m) {
  m.def("nt_xent_forward", &nt_xent_forward);
  m.def("nt_xent_backward", &nt_xent_backward);
  m.def("nt_xent_instruction_sets", &nt_xent_instruction_sets);
}
