// SPDX-License-Identifier: MIT
// split_batch_norm on CUDA, for Python: addresses and sizes, which mixfast/ops/norm/gpu_cuda.py has checked, with a
// device and a stream.
#include <stdexcept>
#include <string>

#include "norm/bind.h"
#include "norm/cuda.h"

namespace {

namespace py = pybind11;
using namespace mixfast::gpu::norm;
using mixfast::splitnorm::Address;
using mixfast::splitnorm::maps;
using mixfast::splitnorm::pointer;

void raise_if(const char* error) {
  if (error) throw std::runtime_error(std::string("split_batch_norm: CUDA says: ") + error);
}

int64_t split_batch_norm_workspace(int64_t samples, int64_t channels, int64_t pixels, int64_t groups,
                                   bool channels_last, int type) {
  return workspace_numbers(maps(samples, channels, pixels, groups, channels_last, type));
}

void split_batch_norm_forward(int64_t samples, int64_t channels, int64_t pixels, int64_t groups, bool channels_last,
                              int type, Address x, Address weight, Address bias, Address running_mean,
                              Address running_var, Address residual, double momentum, double eps, bool relu, Address y,
                              Address means, Address inverses, Address workspace, int device, Address stream) {
  raise_if(forward({device, pointer(stream)},
                   {maps(samples, channels, pixels, groups, channels_last, type), pointer(x), pointer(weight),
                    pointer(bias), pointer(running_mean), pointer(running_var), pointer(residual), momentum, eps, relu,
                    pointer(y), pointer(means), pointer(inverses), pointer(workspace)}));
}

void split_batch_norm_backward(int64_t samples, int64_t channels, int64_t pixels, int64_t groups, bool channels_last,
                               int type, Address dy, Address x, Address y, Address weight, Address means,
                               Address inverses, Address dx, Address d_residual, Address d_weight, Address d_bias,
                               Address workspace, int device, Address stream) {
  raise_if(backward({device, pointer(stream)},
                    {maps(samples, channels, pixels, groups, channels_last, type), pointer(dy), pointer(x), pointer(y),
                     pointer(weight), pointer(means), pointer(inverses), pointer(dx), pointer(d_residual),
                     pointer(d_weight), pointer(d_bias), pointer(workspace)}));
}

}  // namespace

void bind_split_batch_norm(py::module_& m) {
  m.def("split_batch_norm_workspace", &split_batch_norm_workspace);
  m.def("split_batch_norm_forward", &split_batch_norm_forward);
  m.def("split_batch_norm_backward", &split_batch_norm_backward);
}
