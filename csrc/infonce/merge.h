// SPDX-License-Identifier: MIT
// The end of multi_queue_infonce's forward pass on CPU: partial results of a row over its chunks of keys, in order,
// then its positive. With natural logarithms, l = ln 2 (m + log2 sum) the log-sum-exp of the negatives:
//     loss = softplus(l - s)     p = sigmoid(l - s)     d loss / d query = (p / tau) (mean / sum - positive)
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>

#include "common/rows.h"
#include "infonce/cpu.h"
#include "infonce/unit.h"

namespace mixfast {
namespace infonce {
namespace {

constexpr double kLog2E = 1.4426950408889634074, kLn2 = 0.69314718055994530942;

struct Row {
  const void *query, *positive;
  double temperature;
  int64_t index;  // among the rows of all terms, term after term
};

// The rows of the terms that read one queue. Partial results: [chunks][panels][kPanelRows] lanes from first_lane on.
struct Group {
  int64_t queue, first_row, rows, panels, chunks, first_lane;
  int64_t lanes() const { return panels * kPanelRows; }
};

template <class Real>
struct Partials {
  Real *max, *sum;  // [lanes]
  Real* mean;       // [lanes / kPanelRows][dim][kPanelRows], or null
};

// Rounded once, and used for negatives and positive alike, so that what it is off by nearly cancels.
template <class Real>
Real scale_of(double temperature) {
  return static_cast<Real>(kLog2E / temperature);
}

template <class Real>
struct Merge {
  const Forward& call;
  const Row* rows;
  const Partials<Real> partials;
  Real* row_losses;

  void run(const Group& group, int64_t panel) const {
    const int64_t dim = call.dim, used = std::min(kPanelRows, group.rows - panel * kPanelRows);
    const std::unique_ptr<Real[]> memory(new Real[(kPanelRows + 2) * dim]);
    Real* const mean = memory.get();  // [dim][kPanelRows]
    Real* const query = mean + kPanelRows * dim;
    Real* const positive = query + dim;
    Real max[kPanelRows], sum[kPanelRows];
    add_chunks(group, panel, max, sum, mean);
    for (int64_t r = 0; r < used; ++r) {
      const Row& row = rows[group.first_row + panel * kPanelRows + r];
      convert(row.query, call.terms[0].queries.type, 0, 1, dim, query);
      convert(row.positive, call.terms[0].queries.type, 0, 1, dim, positive);
      finish(row, query, positive, max[r], sum[r], mean + r);
    }
  }

 private:
  void add_chunks(const Group& group, int64_t panel, Real* max, Real* sum, Real* mean) const {
    const int64_t first = group.first_lane + panel * kPanelRows;
    std::copy_n(partials.max + first, kPanelRows, max);
    for (int64_t c = 1; c < group.chunks; ++c) {
      const Real* const part = partials.max + first + c * group.lanes();
      for (int64_t r = 0; r < kPanelRows; ++r) max[r] = std::max(max[r], part[r]);
    }
    std::fill_n(sum, kPanelRows, Real(0));
    std::fill_n(mean, call.dim * kPanelRows, Real(0));
    for (int64_t c = 0; c < group.chunks; ++c) {
      const int64_t lane = first + c * group.lanes();
      Real weight[kPanelRows];
      for (int64_t r = 0; r < kPanelRows; ++r) {
        weight[r] = std::exp2(partials.max[lane + r] - max[r]);
        sum[r] += weight[r] * partials.sum[lane + r];
      }
      if (partials.mean == nullptr) continue;
      const Real* const part = partials.mean + lane * call.dim;
      for (int64_t i = 0; i < call.dim; ++i) {
        for (int64_t r = 0; r < kPanelRows; ++r) mean[i * kPanelRows + r] += weight[r] * part[i * kPanelRows + r];
      }
    }
  }

  // `mean` is this row's lane. In double: cheap here, and the difference l - s loses digits.
  void finish(const Row& row, const Real* query, const Real* positive, Real max, Real sum, const Real* mean) const {
    double match = 0;
    for (int64_t d = 0; d < call.dim; ++d) match += static_cast<double>(query[d]) * static_cast<double>(positive[d]);
    match *= static_cast<double>(scale_of<Real>(row.temperature));
    if (!std::isfinite(static_cast<Real>(match))) match = std::numeric_limits<double>::quiet_NaN();  // else a loss of 0
    const double margin = kLn2 * (static_cast<double>(max) + std::log2(static_cast<double>(sum)) - match);
    const double small = std::exp(-std::abs(margin));
    const double share = (margin > 0 ? 1.0 : small) / (1.0 + small);
    row_losses[row.index] = static_cast<Real>(std::max(margin, 0.0) + std::log1p(small));
    static_cast<Real*>(call.negative_share)[row.index] = static_cast<Real>(share);
    if (call.grad_queries == nullptr) return;
    // Without negatives the sum is zero, and so are share and mean; otherwise it is one at least, or a NaN.
    const Real factor = static_cast<Real>(share / row.temperature), inverse = sum == Real(0) ? sum : Real(1) / sum;
    Real* const grad = static_cast<Real*>(call.grad_queries) + row.index * call.dim;
    for (int64_t d = 0; d < call.dim; ++d) grad[d] = factor * (mean[d * kPanelRows] * inverse - positive[d]);
  }
};

}  // namespace
}  // namespace infonce
}  // namespace mixfast
