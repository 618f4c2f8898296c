// SPDX-License-Identifier: MIT
// multi_queue_infonce on CUDA, for Python; on the current stream of the tensors' device.
#include <pybind11/gil_safe_call_once.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <string>

#include "infonce/bind_results.h"
#include "infonce/cuda.h"

namespace {

namespace py = pybind11;
using namespace mixfast;
using namespace mixfast::gpu::infonce;
using bind::Arguments;
using bind::Tensor;

void raise_if(const char* error) {
  if (error) throw std::runtime_error(std::string("multi_queue_infonce: backend cuda: ") + error);
}

// factors(dtype, queue_dtype) of gpu_cuda.py, which sets it when it is imported.
py::object& factors_function() {
  PYBIND11_CONSTINIT static py::gil_safe_call_once_and_store<py::object> storage;
  return storage.call_once_and_store_result([] { return py::object(); }).get_stored();
}

Factors factors(const Arguments& given) {
  const py::object dtype = given.first().object.attr("dtype"), queue_dtype = given.queues[0].object.attr("dtype");
  return static_cast<Factors>(factors_function()(dtype, queue_dtype).cast<int>());
}

Temperatures temperatures(const Arguments& given) {
  const Tensor& tensor = given.temperature;
  if (!tensor.object) return {};
  return {tensor.data, tensor.stride[0], static_cast<Type>(tensor.number)};
}

gpu::Place place(const Arguments& given) { return {given.first().device, bind::stream(given.first())}; }

template <class Call>
const char* without_gil(Call call) {
  const py::gil_scoped_release release;
  return call();
}

float* floats(const Tensor& tensor) { return static_cast<float*>(tensor.data); }

bind::Results run(Arguments& given, bool need_grad, bool in_one) {
  bind::Results results(given, need_grad, in_one);
  if (given.lengths.object) given.lengths = bind::contiguous(given.lengths);
  Forward call;
  call.terms = bind::terms_of(given, true);
  call.queues = bind::matrices_of_queues(given.queues);
  call.valid_len = static_cast<const int64_t*>(given.lengths.data);
  call.temperatures = temperatures(given);
  call.dim = given.dim();
  call.reduction = given.reduction;
  call.factors = factors(given);
  call.kernel = kernel_on(given.first().device);
  call.losses = static_cast<float*>(results.losses.data);
  call.grad_queries = static_cast<float*>(results.gradients);
  call.negative_share = static_cast<float*>(results.shares);
  std::vector<int64_t> rows, keys;
  for (const Term& term : call.terms) rows.push_back(term.queries.rows);
  for (const Matrix& queue : call.queues) keys.push_back(queue.rows);
  const int64_t size =
      workspace_floats(rows, given.queue_index, keys, call.dim, call.factors, need_grad, call.reduction, call.kernel);
  const Tensor workspace = bind::empty(given.first(), {size}, bind::kFloat32);
  call.workspace = floats(workspace);
  raise_if(without_gil([&, where = place(given)] { return forward(where, call); }));
  return results;
}

void run_backward(Arguments& given, const Tensor& grad_losses, const void* grad_queries, const void* negative_share,
                  const bind::Gradients& gradients) {
  Backward call;
  call.terms = bind::terms_of(given, false);
  call.temperatures = temperatures(given);
  call.dim = given.dim();
  call.reduction = given.reduction;
  call.grad_losses = floats(grad_losses);
  call.grad_stride = grad_losses.stride[0];
  call.grad_queries = static_cast<const float*>(grad_queries);
  call.negative_share = static_cast<const float*>(negative_share);
  call.d_queries = gradients.queries.data;
  call.d_positives = gradients.positives.data;
  call.d_temperature = floats(gradients.temperature);
  raise_if(without_gil([&, where = place(given)] { return backward(where, call); }));
}

// (losses, grad_queries, negative_share), grad_queries None if it is not wanted.
py::tuple infonce_forward(const py::sequence& queries, const py::sequence& positives, const py::sequence& queues,
                          std::vector<int64_t> queue_index, const py::object& valid_len, const py::object& temperature,
                          int reduction, bool need_grad) {
  Arguments given =
      bind::trusted(queries, positives, queues, std::move(queue_index), temperature, valid_len, reduction);
  return run(given, need_grad, false).python();
}

// The public function on plain tensors; None for all that needs a closer look. `apply` makes it differentiable.
py::object multi_queue_infonce(py::handle apply, py::handle queries, py::handle positives, py::handle queues,
                               py::handle queue_index, py::handle temperature, py::handle valid_len,
                               py::handle reduction, py::handle backend) {
  Arguments given;
  if (!factors_function() || !bind::names_backend(backend, "cuda") || !bind::nothing_on() ||
      !bind::accepts(queries, positives, queues, queue_index, temperature, valid_len, reduction, bind::Kind::kCuda,
                     given) ||
      given.first().number == bind::kFloat64 || given.dim() > kLargestDim) {
    return py::none();
  }
  const bool need_grad = bind::needs_gradient(given);
  const bind::Results results = run(given, need_grad, true);
  return need_grad ? results.differentiable(apply, given, reduction, "cuda") : results.losses.object;
}

// (d_queries, d_positives, d_temperature), None for what is not wanted.
py::tuple infonce_backward(py::handle grad_losses, py::handle grad_queries, py::handle negative_share,
                           const py::sequence& queries, const py::object& temperature, int reduction, bool need_queries,
                           bool need_positives, bool need_temperature) {
  Arguments given = bind::trusted(queries, py::tuple(), py::tuple(), {}, temperature, py::none(), reduction);
  const bind::Gradients gradients(given, need_queries, need_positives, need_temperature, false);
  const Tensor grads = bind::read(grad_queries), shares = bind::read(negative_share);
  run_backward(given, bind::read(grad_losses), grads.data, shares.data, gradients);
  return gradients.python();
}

py::object infonce_gradient(py::handle grad_losses, const py::tuple& saved, const py::tuple& options,
                            const py::tuple& needs) {
  return bind::infonce_gradient(grad_losses, saved, options, needs, run_backward);
}

}  // namespace

void bind_multi_queue_infonce(py::module_& m) {
  m.def("infonce_use", [](py::object factors) { factors_function() = std::move(factors); });
  m.def("multi_queue_infonce", &multi_queue_infonce);
  m.def("infonce_forward", &infonce_forward);
  m.def("infonce_backward", &infonce_backward);
  m.def("infonce_gradient", &infonce_gradient);
  m.def("infonce_use_kernel", &use_kernel);
  m.def("infonce_has_hopper", &has_hopper);
}
