// SPDX-License-Identifier: MIT
// The backward pass of multi_queue_infonce on CPU: rows of what the forward pass left, times the upstream gradient.
//     d query = g dq      d positive = -(g p / tau) query      d tau = -sum_rows g (query . dq) / tau
// with g the upstream gradient of the row, dq its own gradient and p its probability of the negatives.
// Every row, and every sum over a term's rows, is computed by one thread in a fixed order.
#include <algorithm>
#include <memory>

#include "common/rows.h"
#include "infonce/cpu.h"

namespace mixfast {
namespace infonce {
namespace {

constexpr int64_t kThreadElements = 1 << 16;  // worth another thread
constexpr int64_t kBlockRows = 64;

template <class Real>
struct Scaling {
  const Backward& call;

  // A block of rows of term t. `first` is its first row among the term's, `before` counts the rows of earlier terms.
  // Returns sum g (query . dq).
  double rows(int64_t t, int64_t before, int64_t first, int64_t last) const {
    const Term& term = call.terms[t];
    const std::unique_ptr<Real[]> memory(new Real[2 * call.dim]);
    Real* const query = memory.get();
    Real* const scaled = query + call.dim;
    double sum = 0;
    for (int64_t row = first; row < last; ++row) {
      const int64_t index = before + row;
      const Real g = upstream(t, index);
      const Real* const grad = static_cast<const Real*>(call.grad_queries) + index * call.dim;
      for (int64_t d = 0; d < call.dim; ++d) scaled[d] = g * grad[d];
      if (call.d_queries) convert_back(scaled, call.dim, call.d_queries, term.queries.type, index * call.dim);
      if (!call.d_positives && !call.d_temperature) continue;
      convert(row_address(term.queries, row), term.queries.type, 0, 1, call.dim, query);
      for (int64_t d = 0; d < call.dim; ++d) sum += static_cast<double>(query[d]) * static_cast<double>(scaled[d]);
      if (!call.d_positives) continue;
      const Real share = static_cast<const Real*>(call.negative_share)[index];
      const Real factor = static_cast<Real>(-static_cast<double>(g) * static_cast<double>(share) / term.temperature);
      for (int64_t d = 0; d < call.dim; ++d) query[d] *= factor;
      convert_back(query, call.dim, call.d_positives, term.queries.type, index * call.dim);
    }
    return sum;
  }

  Real upstream(int64_t t, int64_t index) const {
    const Real* const grads = static_cast<const Real*>(call.grad_losses);
    if (call.reduction == Reduction::kNone) return grads[index * call.grad_stride];
    const Real g = grads[t * call.grad_stride];
    return call.reduction == Reduction::kMean ? g / static_cast<Real>(call.terms[t].queries.rows) : g;
  }

  void term(int64_t t, int64_t before, int threads) const {
    const int64_t count = call.terms[t].queries.rows, blocks = (count + kBlockRows - 1) / kBlockRows;
    const std::unique_ptr<double[]> sums(new double[blocks]);
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
    for (int64_t block = 0; block < blocks; ++block) {
      sums[block] = rows(t, before, block * kBlockRows, std::min(count, (block + 1) * kBlockRows));
    }
    if (!call.d_temperature) return;
    double sum = 0;
    for (int64_t block = 0; block < blocks; ++block) sum += sums[block];
    static_cast<Real*>(call.d_temperature)[t] = static_cast<Real>(-sum / call.terms[t].temperature);
  }
};

template <class Real>
void backward_as(const Backward& call) {
  int64_t before = 0;
  for (int64_t t = 0; t < static_cast<int64_t>(call.terms.size()); ++t) {
    const int64_t rows = call.terms[t].queries.rows;
    const int64_t worth = 1 + rows * call.dim / kThreadElements;
    Scaling<Real>{call}.term(t, before, static_cast<int>(std::min<int64_t>(call.threads, worth)));
    before += rows;
  }
}

}  // namespace

void backward(const Backward& call) {
  call.terms[0].queries.type == Type::kDouble ? backward_as<double>(call) : backward_as<float>(call);
}

}  // namespace infonce
}  // namespace mixfast
