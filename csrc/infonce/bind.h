// SPDX-License-Identifier: MIT
// The tables in which Python hands over terms and queues (mixfast/ops/infonce/cpu_native.py), for both bindings.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <vector>

#include "infonce/cpu.h"

namespace mixfast::infonce {

using Table = std::vector<int64_t>;

inline void* pointer(int64_t address) { return reinterpret_cast<void*>(address); }

// Six numbers a term: address and row stride of its queries, the same of its positives, its rows, its queue.
inline std::vector<Term> terms_of(const Table& table, const std::vector<double>& temperatures, int type) {
  std::vector<Term> terms;
  for (size_t i = 0; i + 5 < table.size(); i += 6) {
    const auto rows = [&](size_t at) {
      return Matrix{pointer(table[at]), table[i + 4], table[at + 1], 1, static_cast<Type>(type)};
    };
    const size_t t = i / 6;
    terms.push_back({rows(i), rows(i + 2), static_cast<int>(table[i + 5]), temperatures.empty() ? 0 : temperatures[t]});
  }
  return terms;
}

// Four numbers a queue: address, keys, row stride, column stride.
inline std::vector<Matrix> queues_of(const Table& table, int type) {
  std::vector<Matrix> queues;
  for (size_t i = 0; i + 3 < table.size(); i += 4) {
    queues.push_back({pointer(table[i]), table[i + 1], table[i + 2], table[i + 3], static_cast<Type>(type)});
  }
  return queues;
}

}  // namespace mixfast::infonce
