// SPDX-License-Identifier: MIT
// multi_queue_infonce on CPU, for Python.
#include <pybind11/stl.h>

#include "infonce/bind_results.h"

namespace {

namespace py = pybind11;
using namespace mixfast;
using bind::Arguments;
using bind::Tensor;

// Reads temperatures out of their tensor, and how many keys of each queue count; whether these are such numbers.
bool read_values(Arguments& given) {
  if (given.temperature.object) {
    bind::try_numbers(given.temperature.object.attr("tolist")(), given.temperatures);
    if (!std::all_of(given.temperatures.begin(), given.temperatures.end(), bind::is_temperature)) return false;
  }
  if (!given.lengths.object) return true;
  for (size_t q = 0; q < given.queues.size(); ++q) {
    const int64_t length = static_cast<const int64_t*>(given.lengths.data)[q * given.lengths.stride[0]];
    if (length < 0 || length > given.queues[q].size[0]) return false;
    given.queues[q].size[0] = length;
  }
  return true;
}

bind::Results run(Arguments& given, bool need_grad, bool in_one, int isa) {
  bind::Results results(given, need_grad, in_one);
  const infonce::Forward call = {bind::terms_of(given, true),
                                 bind::matrices_of_queues(given.queues),
                                 given.dim(),
                                 given.reduction,
                                 results.losses.data,
                                 results.gradients,
                                 results.shares,
                                 bind::threads(),
                                 isa < 0 ? instruction_sets().back() : static_cast<Isa>(isa)};
  const py::gil_scoped_release release;
  infonce::forward(call);
  return results;
}

void run_backward(Arguments& given, const Tensor& grad_losses, const void* grad_queries, const void* negative_share,
                  const bind::Gradients& gradients) {
  const infonce::Backward call = {bind::terms_of(given, false),
                                  given.dim(),
                                  given.reduction,
                                  grad_losses.data,
                                  grad_losses.stride[0],
                                  grad_queries,
                                  negative_share,
                                  gradients.queries.data,
                                  gradients.positives.data,
                                  gradients.temperature.data,
                                  bind::threads()};
  const py::gil_scoped_release release;
  infonce::backward(call);
}

// (losses, grad_queries, negative_share), grad_queries None if it is not wanted; None if a value is not valid.
py::object infonce_forward(const py::sequence& queries, const py::sequence& positives, const py::sequence& queues,
                           std::vector<int64_t> queue_index, const py::object& valid_len, const py::object& temperature,
                           int reduction, bool need_grad, int isa) {
  Arguments given =
      bind::trusted(queries, positives, queues, std::move(queue_index), temperature, valid_len, reduction);
  if (!read_values(given)) return py::none();
  return run(given, need_grad, false, isa).python();
}

// The public function on plain tensors; None for all that needs a closer look. `apply` makes it differentiable.
py::object multi_queue_infonce(py::handle apply, py::handle queries, py::handle positives, py::handle queues,
                               py::handle queue_index, py::handle temperature, py::handle valid_len,
                               py::handle reduction, py::handle backend) {
  Arguments given;
  if (!bind::names_backend(backend, "cpu") || !bind::nothing_on() ||
      !bind::accepts(queries, positives, queues, queue_index, temperature, valid_len, reduction, bind::Kind::kCpu,
                     given) ||
      !read_values(given)) {
    return py::none();
  }
  const bool need_grad = bind::needs_gradient(given);
  const bind::Results results = run(given, need_grad, true, -1);
  return need_grad ? results.differentiable(apply, given, reduction, "cpu") : results.losses.object;
}

// (d_queries, d_positives, d_temperature), None for what is not wanted.
py::tuple infonce_backward(py::handle grad_losses, py::handle grad_queries, py::handle negative_share,
                           const py::sequence& queries, const py::object& temperature, int reduction, bool need_queries,
                           bool need_positives, bool need_temperature) {
  Arguments given = bind::trusted(queries, py::tuple(), py::tuple(), {}, temperature, py::none(), reduction);
  read_values(given);
  const bind::Gradients gradients(given, need_queries, need_positives, need_temperature, false);
  const Tensor grads = bind::read(grad_queries), shares = bind::read(negative_share);
  run_backward(given, bind::read(grad_losses), grads.data, shares.data, gradients);
  return gradients.python();
}

py::object infonce_gradient(py::handle grad_losses, const py::tuple& saved, const py::tuple& options,
                            const py::tuple& needs) {
  return bind::infonce_gradient(grad_losses, saved, options, needs, run_backward);
}

std::vector<int> infonce_instruction_sets() {
  std::vector<int> names;
  for (const Isa isa : instruction_sets()) names.push_back(static_cast<int>(isa));
  return names;
}

}  // namespace

void bind_multi_queue_infonce(py::module_& m) {
  m.def("multi_queue_infonce", &multi_queue_infonce);
  m.def("infonce_forward", &infonce_forward);
  m.def("infonce_backward", &infonce_backward);
  m.def("infonce_gradient", &infonce_gradient);
  m.def("infonce_instruction_sets", &infonce_instruction_sets);
}
