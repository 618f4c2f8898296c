// SPDX-License-Identifier: MIT
// multi_queue_infonce on CUDA, for Python: addresses and sizes, which mixfast/ops/infonce/gpu_cuda.py has checked, with
// a device and a stream.
#include <stdexcept>
#include <string>
#include <tuple>

#include "infonce/bind.h"
#include "infonce/cuda.h"

namespace {

namespace py = pybind11;
using namespace mixfast::gpu::infonce;
using mixfast::infonce::pointer;
using mixfast::infonce::queues_of;
using mixfast::infonce::Table;
using mixfast::infonce::terms_of;
using Numbers = std::vector<double>;

// Address, stride and type of a tensor of temperatures.
using Scale = std::tuple<int64_t, int64_t, int>;

Temperatures temperatures_of(const Scale& scale) {
  const auto [address, stride, type] = scale;
  return {pointer(address), stride, static_cast<Type>(type)};
}

template <class T = float>
T* numbers(int64_t address) {
  return static_cast<T*>(pointer(address));
}

void raise_if(const char* error) {
  if (error) throw std::runtime_error(std::string("multi_queue_infonce: backend cuda: ") + error);
}

template <class Call>
const char* without_gil(Call call) {
  const py::gil_scoped_release release;
  return call();
}

int64_t infonce_workspace(const Table& rows, const Table& queue_index, const Table& keys, int64_t dim, int factors,
                          bool need_grad, int reduction, int device) {
  return workspace_floats(rows, queue_index, keys, dim, static_cast<Factors>(factors), need_grad,
                          static_cast<Reduction>(reduction), kernel_on(device));
}

void infonce_forward(const Table& terms, const Numbers& temperatures, const Scale& scale, int type, const Table& queues,
                     int queue_type, int64_t valid_len, int64_t dim, int reduction, int factors, int64_t losses,
                     int64_t grad_queries, int64_t negative_share, int64_t workspace, int device, int64_t stream) {
  const Forward call = {terms_of(terms, temperatures, type),
                        queues_of(queues, queue_type),
                        numbers<const int64_t>(valid_len),
                        temperatures_of(scale),
                        dim,
                        static_cast<Reduction>(reduction),
                        static_cast<Factors>(factors),
                        numbers(losses),
                        numbers(grad_queries),
                        numbers(negative_share),
                        numbers(workspace),
                        kernel_on(device)};
  raise_if(without_gil([&] { return forward({device, pointer(stream)}, call); }));
}

void infonce_backward(const Table& terms, const Numbers& temperatures, const Scale& scale, int type, int64_t dim,
                      int reduction, int64_t grad_losses, int64_t grad_stride, int64_t grad_queries,
                      int64_t negative_share, int64_t d_queries, int64_t d_positives, int64_t d_temperature, int device,
                      int64_t stream) {
  const Backward call = {terms_of(terms, temperatures, type),
                         temperatures_of(scale),
                         dim,
                         static_cast<Reduction>(reduction),
                         numbers(grad_losses),
                         grad_stride,
                         numbers(grad_queries),
                         numbers(negative_share),
                         pointer(d_queries),
                         pointer(d_positives),
                         numbers(d_temperature)};
  raise_if(without_gil([&] { return backward({device, pointer(stream)}, call); }));
}

}  // namespace

void bind_multi_queue_infonce(py::module_& m) {
  m.def("infonce_workspace", &infonce_workspace);
  m.def("infonce_forward", &infonce_forward);
  m.def("infonce_backward", &infonce_backward);
  m.def("infonce_use_kernel", &use_kernel);
  m.def("infonce_has_hopper", &has_hopper);
}
