// SPDX-License-Identifier: MIT
// The unit of work of multi_queue_infonce on CPU: some rows against some keys of their queue.
//
// Rows live in panels of kPanelRows: value v of the rows of a panel is a vector [kPanelRows], one lane per row, so that
// the running maximum and sum of a row are lanes too and nothing is ever summed across lanes. With s = q.x / tau:
//     max   [panels][kPanelRows]         m = max_j s_j log2(e)              j runs over the keys of the unit
//     sum   [panels][kPanelRows]         sum_j 2^(s_j log2(e) - m)
//     mean  [panels][dim][kPanelRows]    sum_j 2^(s_j log2(e) - m) x_j      not yet divided by the sum
#pragma once

#include <cstdint>

#include "common/matrix.h"

namespace mixfast {
namespace infonce {

constexpr int64_t kPanelRows = 32;
constexpr int64_t kTileKeys = 128;  // keys whose scores with a panel lie in the level-1 cache

template <class T>
struct Unit {
  const void* const* queries;  // [rows] addresses of rows with adjacent elements
  Type query_type;
  int64_t rows, dim;
  Matrix keys;
  int64_t first_key, last_key;  // half-open
  const T* scale;               // [panels][kPanelRows]: log2(e) / tau, anything finite beyond `rows`
  T *max, *sum, *mean;          // results; `mean` is null if no gradient is wanted
  T* scratch;                   // [unit_scratch(rows, dim)]
};

constexpr int64_t panels_of(int64_t rows) { return (rows + kPanelRows - 1) / kPanelRows; }

// Queries as panels [panels][dim][kPanelRows], the scores of a panel, and a converted tile of keys.
constexpr int64_t unit_scratch(int64_t rows, int64_t dim) {
  return panels_of(rows) * dim * kPanelRows + kTileKeys * kPanelRows + kTileKeys * dim;
}

// One per instruction set, each compiled with its own flags; all do the same arithmetic in the same order.
namespace baseline {
void run(const Unit<float>& unit);
void run(const Unit<double>& unit);
}  // namespace baseline
namespace avx2 {
void run(const Unit<float>& unit);
void run(const Unit<double>& unit);
}  // namespace avx2
namespace avx512 {
void run(const Unit<float>& unit);
void run(const Unit<double>& unit);
}  // namespace avx512

}  // namespace infonce
}  // namespace mixfast
