// SPDX-License-Identifier: MIT
// split_batch_norm on CPU, for Python: addresses and sizes that mixfast/ops/norm/cpu_native.py has checked.
#include <pybind11/stl.h>

#include <vector>

#include "norm/bind.h"

namespace {

namespace py = pybind11;
using namespace mixfast;
using namespace mixfast::splitnorm;

void split_batch_norm_forward(int64_t samples, int64_t channels, int64_t pixels, int64_t groups, bool channels_last,
                              int type, Address x, Address weight, Address bias, Address running_mean,
                              Address running_var, Address residual, double momentum, double eps, bool relu, Address y,
                              Address means, Address inverses, int threads, int isa) {
  py::gil_scoped_release release;
  forward({maps(samples, channels, pixels, groups, channels_last, type), pointer(x), pointer(weight), pointer(bias),
           pointer(running_mean), pointer(running_var), pointer(residual), momentum, eps, relu, pointer(y),
           pointer(means), pointer(inverses), threads, static_cast<Isa>(isa)});
}

void split_batch_norm_backward(int64_t samples, int64_t channels, int64_t pixels, int64_t groups, bool channels_last,
                               int type, Address dy, Address x, Address y, Address weight, Address means,
                               Address inverses, Address dx, Address d_residual, Address d_weight, Address d_bias,
                               int threads, int isa) {
  py::gil_scoped_release release;
  backward({maps(samples, channels, pixels, groups, channels_last, type), pointer(dy), pointer(x), pointer(y),
            pointer(weight), pointer(means), pointer(inverses), pointer(dx), pointer(d_residual), pointer(d_weight),
            pointer(d_bias), threads, static_cast<Isa>(isa)});
}

std::vector<int> split_batch_norm_instruction_sets() {
  std::vector<int> names;
  for (const Isa isa : instruction_sets()) names.push_back(static_cast<int>(isa));
  return names;
}

}  // namespace

void bind_split_batch_norm(py::module_& m) {
  m.def("split_batch_norm_forward", &split_batch_norm_forward);
  m.def("split_batch_norm_backward", &split_batch_norm_backward);
  m.def("split_batch_norm_instruction_sets", &split_batch_norm_instruction_sets);
}
