// SPDX-License-Identifier: MIT
// What the bindings of multi_queue_infonce on CPU and CUDA give back: losses that know their derivative, and gradients.
#pragma once

#include "infonce/bind.h"

namespace mixfast {
namespace bind {

// Memory for the results, as addresses. The losses are a tensor of their own; what is kept for the derivative,
// gradients [N, D] and shares [N], lies in two tensors, or behind each other in one, which is cheaper to make and to
// save.
struct Results {
  Tensor losses, grad_queries, negative_share;
  void *gradients = nullptr, *shares;

  Results(const Arguments& given, bool need_grad, bool in_one) {
    const Number number = given.statistics();
    const int64_t rows = given.rows(), dim = given.dim();
    losses = empty(given.first(), {given.reduction == infonce::Reduction::kNone ? rows : given.terms()}, number);
    if (in_one && need_grad) {
      grad_queries = empty(given.first(), {rows * (dim + 1)}, number);
      shares = static_cast<char*>(grad_queries.data) + rows * dim * bytes(number);
    } else {
      negative_share = empty(given.first(), {rows}, number);
      shares = negative_share.data;
      if (need_grad) grad_queries = empty(given.first(), {rows, dim}, number);
    }
    gradients = grad_queries.data;
  }
  py::tuple python() const { return py::make_tuple(losses.python(), grad_queries.python(), negative_share.python()); }

  // The losses as apply(made, temperature, tensors in queries, *queries, *positives) makes them differentiable, where
  // made = (losses, tensors to be saved, (numbers, reduction, backend, positives)) for _operators.py.
  py::object differentiable(py::handle apply, const Arguments& given, py::handle reduction, const char* backend) const {
    const size_t count = given.queries.size();
    py::tuple saved(2 + count), positives(count), arguments(3 + 2 * count);
    const py::object temperature = given.temperature.python();
    saved[0] = grad_queries.object, saved[1] = temperature;
    for (size_t t = 0; t < count; ++t) {
      saved[2 + t] = given.queries[t].object;
      arguments[3 + t] = given.queries[t].object;
      arguments[3 + count + t] = given.positives[t].object;
      positives[t] = given.positives[t].object;
    }
    const py::tuple options = py::make_tuple(py::cast(given.temperatures), reduction, backend, positives);
    arguments[0] = py::make_tuple(losses.object, saved, options);
    arguments[1] = temperature, arguments[2] = count;
    return call(apply, arguments);
  }
};

struct Gradients {
  Tensor queries, positives, temperature;
  Tensor both;  // of lists: [2, N, D], the memory of queries and positives where each has part of it

  // As the operator returns them, or for shaped() in as little memory to be made and cut as there can be.
  Gradients(const Arguments& given, bool need_queries, bool need_positives, bool need_temperature, bool for_shaped) {
    const Tensor& first = given.first();
    const int64_t rows = given.rows(), dim = given.dim();
    const auto rows_like = [&] {
      if (for_shaped && given.packed()) return empty(first, {first.size[0], first.size[1], dim}, first.number);
      return empty(first, {rows, dim}, first.number);
    };
    if (for_shaped && !given.packed() && need_queries && need_positives) {
      both = empty(first, {2 * rows, dim}, first.number);
      queries.data = both.data;
      positives.data = static_cast<char*>(both.data) + rows * dim * bytes(first.number);
    } else {
      if (need_queries) queries = rows_like();
      if (need_positives) positives = rows_like();
    }
    if (need_temperature) temperature = empty(first, {given.terms()}, given.statistics());
  }
  py::tuple python() const { return py::make_tuple(queries.python(), positives.python(), temperature.python()); }

  // What the derivative of apply's function returns, for each of its arguments.
  py::tuple shaped(const Arguments& given) const {
    const size_t count = given.queries.size();
    py::tuple all(3 + 2 * count);
    for (size_t i = 0; i < all.size(); ++i) all[i] = py::none();
    if (temperature.object) all[1] = as(temperature, given.temperature).object;
    if (given.packed()) {
      all[3] = queries.python(), all[4] = positives.python();
      return all;
    }
    fill(all, 3, both, given, 2);
    fill(all, 3, queries, given, 1);
    fill(all, 3 + count, positives, given, 1);
    return all;
  }

 private:
  // The rows of each term, `times` over, from `first` on.
  static void fill(py::tuple& all, size_t first, const Tensor& rows, const Arguments& given, size_t times) {
    if (!rows.object) return;
    const size_t count = given.queries.size();
    std::vector<int64_t> sizes(times * count);
    for (size_t i = 0; i < sizes.size(); ++i) sizes[i] = given.queries[i % count].size[0];
    const py::tuple parts = split(rows, sizes);
    for (size_t i = 0; i < sizes.size(); ++i) all[first + i] = parts[i];
  }
};

// What was saved for the derivative, with the options, all read; false if there is more to it than plain memory. What
// accepts() found not to be negated is not asked again.
inline bool try_saved(const py::tuple& saved, const py::tuple& options, Arguments& given) {
  const size_t count = saved.size() - 2;
  given.queries.resize(count);
  for (size_t t = 0; t < count; ++t) {
    if (!try_read_saved(saved[2 + t], given.queries[t])) return false;
  }
  int reduction;
  if (!try_reduction(options[1], reduction) || !try_numbers(options[0], given.temperatures)) return false;
  given.reduction = static_cast<infonce::Reduction>(reduction);
  return saved[1].is_none() || try_read_saved(saved[1], given.temperature);
}

// Whether one of needs[first], ..., needs[last - 1] is True.
inline bool any_of(const py::tuple& needs, size_t first, size_t last) {
  for (size_t i = first; i < last; ++i) {
    if (py::handle(needs[i]).is(py::handle(Py_True))) return true;
  }
  return false;
}

// The derivative of the function behind `apply`, where all is plain and nobody asks for its own derivative; else None.
// `run(given, grad_losses, gradients of the forward pass, shares, gradients)` fills the gradients.
template <class Run>
py::object infonce_gradient(py::handle grad_losses, const py::tuple& saved, const py::tuple& options,
                            const py::tuple& needs, Run run) {
  Arguments given;
  Tensor upstream;
  if (grad_enabled() || !nothing_on() || !try_read_plain(grad_losses, upstream) || !try_saved(saved, options, given)) {
    return py::none();
  }
  const size_t positives = 3 + given.queries.size();
  const Gradients gradients(given, any_of(needs, 3, positives), any_of(needs, positives, needs.size()),
                            any_of(needs, 1, 2), true);
  const Tensor kept = read(saved[0]);
  const int64_t before = given.rows() * given.dim() * bytes(kept.number);
  run(given, upstream, kept.data, static_cast<const char*>(kept.data) + before, gradients);
  return gradients.shaped(given);
}

}  // namespace bind
}  // namespace mixfast
