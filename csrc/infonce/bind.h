// SPDX-License-Identifier: MIT
// What the bindings of multi_queue_infonce on CPU and CUDA share: the arguments read and checked, rows of terms found.
#pragma once

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "common/bind_tensor.h"
#include "infonce/cpu.h"

namespace mixfast {
namespace bind {

struct Arguments {
  std::vector<Tensor> queries, positives, queues;
  std::vector<int64_t> queue_index;
  Tensor temperature;                // [T], or none
  std::vector<double> temperatures;  // one per term, if there is no tensor
  Tensor lengths;                    // valid_len [Q], or none
  infonce::Reduction reduction;

  bool packed() const { return queries[0].dims == 3; }  // one tensor [T, N, D]
  const Tensor& first() const { return queries[0]; }
  int64_t dim() const { return first().size[first().dims - 1]; }
  int64_t terms() const { return packed() ? first().size[0] : static_cast<int64_t>(queries.size()); }
  int64_t rows() const {
    int64_t total = 0;
    for (const Tensor& each : queries) total += packed() ? each.size[0] * each.size[1] : each.size[0];
    return total;
  }
  Number statistics() const { return first().number == kFloat64 ? kFloat64 : kFloat32; }
};

inline bool alike(const Tensor& a, const Tensor& b) { return a.number == b.number && a.with(b); }

inline bool same_size(const Tensor& a, const Tensor& b) {
  return a.dims == b.dims && std::equal(a.size, a.size + a.dims, b.size);
}

// Queries or positives: a tensor [T, N, D], or T tensors [N, D].
inline bool try_rows(py::handle object, std::vector<Tensor>& rows) {
  if (PyList_CheckExact(object.ptr()) || PyTuple_CheckExact(object.ptr())) {
    if (!try_read_plain(object, rows)) return false;
    for (const Tensor& each : rows) {
      if (each.dims != 2 || !alike(each, rows[0]) || each.size[0] < 1 || each.size[1] != rows[0].size[1]) return false;
    }
  } else {
    rows.resize(1);
    if (!try_read_plain(object, rows[0]) || rows[0].dims != 3 || rows[0].size[0] < 1 || rows[0].size[1] < 1)
      return false;
  }
  return rows[0].floating() && rows[0].size[rows[0].dims - 1] > 0;
}

inline bool try_queues(py::handle object, const Arguments& given, std::vector<Tensor>& queues) {
  if (!try_read_plain(object, queues)) return false;
  for (const Tensor& queue : queues) {
    if (queue.dims != 2 || queue.size[0] < 1 || queue.size[1] != given.dim() || !queue.floating()) return false;
    if (!alike(queue, queues[0]) || !queue.with(given.first()) || requires_grad(queue)) return false;
  }
  return (queues[0].number == kFloat64) == (given.first().number == kFloat64);
}

inline bool is_temperature(double number) { return 0 < number && number < HUGE_VAL; }

inline bool try_temperature(py::handle object, Arguments& given) {
  const auto terms = static_cast<size_t>(given.terms());
  double number;
  if (try_number(object, number)) {
    given.temperatures.assign(terms, number);
    return is_temperature(number);
  }
  if (try_numbers(object, given.temperatures)) {
    return given.temperatures.size() == terms &&
           std::all_of(given.temperatures.begin(), given.temperatures.end(), is_temperature);
  }
  Tensor& tensor = given.temperature;
  return try_read_plain(object, tensor) && tensor.dims == 1 && tensor.size[0] == given.terms() && tensor.floating() &&
         tensor.with(given.first());
}

// Whether these are plain tensors on this kind of device, and arguments, that pass the checks of _checks.py and that
// autocast leaves as they are.
inline bool accepts(py::handle queries, py::handle positives, py::handle queues, py::handle queue_index,
                    py::handle temperature, py::handle valid_len, py::handle reduction, Kind kind, Arguments& given) {
  if (!try_rows(queries, given.queries) || given.first().kind != kind) return false;
  if (!try_rows(positives, given.positives) || given.positives.size() != given.queries.size()) return false;
  for (size_t t = 0; t < given.queries.size(); ++t) {
    if (!same_size(given.queries[t], given.positives[t]) || !alike(given.queries[t], given.positives[t])) return false;
  }
  if (!try_queues(queues, given, given.queues) || !try_integers(queue_index, given.queue_index)) return false;
  if (static_cast<int64_t>(given.queue_index.size()) != given.terms()) return false;
  for (const int64_t index : given.queue_index) {
    if (index < 0 || index >= static_cast<int64_t>(given.queues.size())) return false;
  }
  if (!valid_len.is_none()) {
    Tensor& lengths = given.lengths;
    if (!try_read_plain(valid_len, lengths) || lengths.number != kInt64 || lengths.dims != 1) return false;
    if (lengths.size[0] != static_cast<int64_t>(given.queues.size()) || !lengths.with(given.first())) return false;
  }
  int how;
  if (!try_temperature(temperature, given) || !try_reduction(reduction, how)) return false;
  given.reduction = static_cast<infonce::Reduction>(how);
  const Number number = given.first().number, cast = kind == Kind::kCuda ? kFloat16 : kFloat32;
  return number == kFloat64 || number == cast || !autocast_enabled(kind);
}

inline bool needs_gradient(const Arguments& given) {
  if (!grad_enabled()) return false;
  const auto any = [](const std::vector<Tensor>& all) { return std::any_of(all.begin(), all.end(), requires_grad); };
  return any(given.queries) || any(given.positives) || (given.temperature.object && requires_grad(given.temperature));
}

// Arguments that the checks in Python have passed; `temperature` is a tensor or a list.
inline Arguments trusted(const py::sequence& queries, const py::sequence& positives, const py::sequence& queues,
                         std::vector<int64_t> queue_index, const py::object& temperature, const py::object& valid_len,
                         int reduction) {
  const auto all = [](const py::sequence& tensors) {
    std::vector<Tensor> found;
    for (const py::handle each : tensors) found.push_back(read(each));
    return found;
  };
  Arguments given;
  given.queries = all(queries), given.positives = all(positives), given.queues = all(queues);
  given.queue_index = std::move(queue_index);
  if (!try_numbers(temperature, given.temperatures)) given.temperature = read(temperature);
  if (!valid_len.is_none()) given.lengths = read(valid_len);
  given.reduction = static_cast<infonce::Reduction>(reduction);
  return given;
}

// The rows of each term. Those whose elements are not adjacent are copied: `tensors` then keep the copies.
inline std::vector<Matrix> matrices(std::vector<Tensor>& tensors) {
  std::vector<Matrix> terms;
  for (Tensor& each : tensors) {
    const int last = each.dims - 1;
    if (each.stride[last] != 1) each = contiguous(each);
    const int64_t row = each.contiguous() ? each.size[last] : each.stride[last - 1];
    const int64_t count = last == 2 ? each.size[0] : 1, step = last == 2 ? each.stride[0] * bytes(each.number) : 0;
    for (int64_t t = 0; t < count; ++t) {
      terms.push_back({static_cast<const char*>(each.data) + t * step, each.size[last - 1], row, 1,
                       static_cast<Type>(each.number)});
    }
  }
  return terms;
}

inline std::vector<Matrix> matrices_of_queues(const std::vector<Tensor>& queues) {
  std::vector<Matrix> found;
  for (const Tensor& each : queues) {
    found.push_back({each.data, each.size[0], each.stride[0], each.stride[1], static_cast<Type>(each.number)});
  }
  return found;
}

inline std::vector<infonce::Term> terms_of(Arguments& given, bool with_positives) {
  const std::vector<Matrix> queries = matrices(given.queries);
  const std::vector<Matrix> positives =
      with_positives ? matrices(given.positives) : std::vector<Matrix>(queries.size());
  std::vector<infonce::Term> terms;
  for (size_t t = 0; t < queries.size(); ++t) {
    terms.push_back({queries[t], positives[t], with_positives ? static_cast<int>(given.queue_index[t]) : 0,
                     given.temperatures.empty() ? 0.0 : given.temperatures[t]});
  }
  return terms;
}

}  // namespace bind
}  // namespace mixfast
