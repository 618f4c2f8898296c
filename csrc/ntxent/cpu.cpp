// SPDX-License-Identifier: MIT
// nt_xent on CPU: packs the rows into panels, visits all pairs of panels, computes losses or gradients from the sums.
//
// Meetings  the pairs are scheduled as in a tournament: in a round every block of panels meets one other block, so that
//           the meetings of a round share no data and run in any order, and a row's sums grow in the order of the
//           rounds. That order follows from shapes alone: the bits are the same for any number of threads
// Memory    the rows as Real, and in the backward pass their gradients; nothing that grows with the square of N
// Checked   tests/ops/test_nt_xent.py; derivation in docs/maths.md
#include "ntxent/cpu.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>

#include "common/exp2.h"
#include "common/rows.h"
#include "ntxent/tile.h"

namespace mixfast {
namespace ntxent {
namespace {

constexpr double kLog2E = 1.4426950408889634074, kLn2 = 0.69314718055994530942;
constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr int64_t kBlocks = 64;      // wanted: half as many meetings are enough for any number of cores
constexpr int64_t kBlockPanels = 4;  // at most: two blocks' panels and gradients stay in the level-2 cache
constexpr double kThreadWork = 1e6;  // multiplications that are worth another thread
constexpr double kLarge = 1024;      // base-2 logit from which a denominator is two numbers

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

int threads_for(int threads, int64_t rows, int64_t dim) {
  const double work = static_cast<double>(rows) * static_cast<double>(rows) * static_cast<double>(dim);
  return static_cast<int>(std::min<double>(threads, 1 + work / kThreadWork));
}

template <class Real>
using Tile = void (*)(const Problem<Real>&, int64_t, int64_t, Real*);

template <class Real>
Tile<Real> forward_tile(Isa isa) {
#if defined(__x86_64__)
  if (isa == Isa::kAvx512) return avx512::forward_tile;
  if (isa == Isa::kAvx2) return avx2::forward_tile;
#endif
  (void)isa;
  return baseline::forward_tile;
}

template <class Real>
Tile<Real> backward_tile(Isa isa) {
#if defined(__x86_64__)
  if (isa == Isa::kAvx512) return avx512::backward_tile;
  if (isa == Isa::kAvx2) return avx2::backward_tile;
#endif
  (void)isa;
  return baseline::backward_tile;
}

// Calls tile(problem, a, b, scratch) for all panels a <= b, or b < a in their place.
template <class Real>
void meet(const Problem<Real>& problem, Tile<Real> tile, int threads) {
  const int64_t panels = ceil_div(problem.rows, kPanelRows);
  const int64_t size = std::max<int64_t>(1, std::min(panels / kBlocks, kBlockPanels));
  const int64_t blocks = ceil_div(panels, size), players = blocks + blocks % 2;
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    const std::unique_ptr<Real[]> scratch(new Real[kScratch]);
    const auto play = [&](int64_t one, int64_t other) {
      for (int64_t a = one * size; a < std::min(panels, (one + 1) * size); ++a) {
        const int64_t first = one == other ? a : other * size;
        for (int64_t b = first; b < std::min(panels, (other + 1) * size); ++b) tile(problem, a, b, scratch.get());
      }
    };
    for (int64_t round = 0; round < players - 1; ++round) {  // all but the last player go round in a circle
#pragma omp for schedule(dynamic)
      for (int64_t k = 0; k < players / 2; ++k) {
        const int64_t one = (round + k) % (players - 1);
        const int64_t other = k == 0 ? players - 1 : (round - k + players - 1) % (players - 1);
        if (std::max(one, other) < blocks) play(one, other);
      }
    }
#pragma omp for schedule(dynamic)
    for (int64_t block = 0; block < blocks; ++block) play(block, block);
  }
}

// The rows of both views as panels, and one array for each lane of them.
template <class Real>
class Panels {
 public:
  Panels(const Views& views, int arrays, bool grads, int threads) : count_(ceil_div(2 * views.first.rows, kPanelRows)) {
    const int64_t size = count_ * kPanelRows * views.dim;
    panels_.reset(new Real[size]);
    lanes_.reset(new Real[arrays * count_ * kPanelRows]);
    problem = {panels_.get(), 2 * views.first.rows, views.dim, views.excluded,
               static_cast<Real>(kLog2E / views.temperature)};
    if (grads) {
      grads_.reset(new Real[size]);
      problem.grads = grads_.get();
    }
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
    for (int64_t panel = 0; panel < count_; ++panel) pack(views, panel);
  }

  Real* lanes(int array) const { return lanes_.get() + array * count_ * kPanelRows; }
  int64_t count() const { return count_; }

  Problem<Real> problem;

 private:
  void pack(const Views& views, int64_t panel) const {
    const int64_t dim = views.dim, half = views.first.rows;
    const std::unique_ptr<Real[]> values(new Real[dim]);
    Real* const to = panels_.get() + panel * dim * kPanelRows;
    std::fill_n(to, dim * kPanelRows, Real(0));
    if (grads_) std::fill_n(grads_.get() + panel * dim * kPanelRows, dim * kPanelRows, Real(0));
    for (int64_t r = 0; r < rows_in(problem, panel); ++r) {
      const int64_t row = panel * kPanelRows + r;
      const Matrix& view = row < half ? views.first : views.second;
      convert(row_address(view, row < half ? row : row - half), view.type, 0, 1, dim, values.get());
      for (int64_t d = 0; d < dim; ++d) to[d * kPanelRows + r] = values[d];
    }
  }

  int64_t count_;
  std::unique_ptr<Real[]> panels_, lanes_, grads_;
};

// With m and sum over the negatives and natural logarithms, l = ln 2 (m + log2 sum):
//     loss = softplus(l - s)     share = sigmoid(l - s)     denominator = log2 e^(s + loss)
// In double: cheap here, and the difference l - s loses digits. A denominator is one number and zero, or from kLarge
// on, where one would lose digits of the probabilities, m and the rest.
template <class Real>
void finish(const Problem<Real>& problem, int64_t panel, Real* losses, Real* denominators, Real* shares) {
  const int64_t first = panel * kPanelRows, count = rows_in(problem, panel);
  const Real* positives[kPanelRows];
  double match[kPanelRows] = {};
  for (int64_t r = 0; r < count; ++r) {
    const int64_t row = positive_of(problem, first + r);
    positives[r] = problem.panels + row / kPanelRows * problem.dim * kPanelRows + row % kPanelRows;
  }
  for (int64_t d = 0; d < problem.dim; ++d) {
    const Real* const anchors = problem.panels + (panel * problem.dim + d) * kPanelRows;
    for (int64_t r = 0; r < count; ++r) {
      match[r] += static_cast<double>(anchors[r]) * static_cast<double>(positives[r][d * kPanelRows]);
    }
  }
  for (int64_t row = first; row < first + count; ++row) {
    double positive = match[row - first] * static_cast<double>(problem.scale);
    if (!std::isfinite(static_cast<Real>(positive))) positive = std::numeric_limits<double>::quiet_NaN();
    const double max = static_cast<double>(problem.max[row]), log = std::log2(static_cast<double>(problem.sum[row]));
    const double margin = kLn2 * (max + log - positive), small = std::exp(-std::abs(margin));
    const double loss = std::max(margin, 0.0) + std::log1p(small);
    losses[row] = static_cast<Real>(loss);
    const bool large = log > -kInfinity && std::abs(max) >= kLarge;
    denominators[row] = large ? problem.max[row] : static_cast<Real>(positive + loss * kLog2E);
    denominators[problem.rows + row] =
        large ? static_cast<Real>((margin > 0 ? log : positive - max) + std::log1p(small) * kLog2E) : Real(0);
    shares[row] = static_cast<Real>((margin > 0 ? 1.0 : small) / (1.0 + small));
  }
}

template <class Real>
void forward_as(const Forward& call) {
  const int64_t rows = 2 * call.views.first.rows;
  const int threads = threads_for(call.threads, rows, call.views.dim);
  Panels<Real> panels(call.views, 2, false, threads);
  Problem<Real>& problem = panels.problem;
  problem.max = panels.lanes(0);
  problem.sum = panels.lanes(1);
  std::fill_n(problem.max, panels.count() * kPanelRows, std::numeric_limits<Real>::lowest());
  std::fill_n(problem.sum, panels.count() * kPanelRows, Real(0));
  meet(problem, forward_tile<Real>(call.isa), threads);

  const bool each = call.reduction == Reduction::kNone;
  const std::unique_ptr<Real[]> memory(each ? nullptr : new Real[rows]);
  Real* const losses = each ? static_cast<Real*>(call.losses) : memory.get();
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
  for (int64_t panel = 0; panel < panels.count(); ++panel) {
    finish(problem, panel, losses, static_cast<Real*>(call.denominators), static_cast<Real*>(call.shares));
  }
  if (each) return;
  double sum = 0;
  for (int64_t row = 0; row < rows; ++row) sum += static_cast<double>(losses[row]);
  *static_cast<Real*>(call.losses) =
      static_cast<Real>(call.reduction == Reduction::kMean ? sum / static_cast<double>(rows) : sum);
}

// Writes the gradients of a panel's rows; returns the sum of row . gradient.
template <class Real>
double write_rows(const Problem<Real>& problem, int64_t panel, void* d_rows, Type type) {
  const std::unique_ptr<Real[]> values(new Real[problem.dim]);
  const int64_t start = panel * problem.dim * kPanelRows;
  double sum = 0;
  for (int64_t r = 0; r < rows_in(problem, panel); ++r) {
    for (int64_t d = 0; d < problem.dim; ++d) {
      const int64_t cell = start + d * kPanelRows + r;
      values[d] = problem.grads[cell];
      sum += static_cast<double>(problem.panels[cell]) * static_cast<double>(values[d]);
    }
    convert_back(values.get(), problem.dim, d_rows, type, (panel * kPanelRows + r) * problem.dim);
  }
  return sum;
}

template <class Real>
void backward_as(const Backward& call) {
  const int64_t rows = 2 * call.views.first.rows;
  const double temperature = call.views.temperature;
  const int threads = threads_for(call.threads, rows, call.views.dim);
  Panels<Real> panels(call.views, 4, true, threads);
  Problem<Real>& problem = panels.problem;
  Real* const lanes = panels.lanes(0);  // upstream gradients, denominators, shares: zero beyond the last row
  std::fill_n(lanes, 4 * panels.count() * kPanelRows, Real(0));
  const double divisor = temperature * (call.reduction == Reduction::kMean ? static_cast<double>(rows) : 1.0);
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t at = call.reduction == Reduction::kNone ? row * call.grad_stride : 0;
    lanes[row] = static_cast<Real>(static_cast<double>(static_cast<const Real*>(call.grad_losses)[at]) / divisor);
  }
  std::copy_n(static_cast<const Real*>(call.denominators), rows, panels.lanes(1));
  std::copy_n(static_cast<const Real*>(call.denominators) + rows, rows, panels.lanes(2));
  std::copy_n(static_cast<const Real*>(call.shares), rows, panels.lanes(3));
  problem.scaled = lanes;
  problem.shifts = panels.lanes(1);
  problem.logs = panels.lanes(2);
  problem.shares = panels.lanes(3);
  meet(problem, backward_tile<Real>(call.isa), threads);

  const std::unique_ptr<double[]> sums(new double[panels.count()]);
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
  for (int64_t panel = 0; panel < panels.count(); ++panel) {
    sums[panel] = write_rows(problem, panel, call.d_rows, call.views.first.type);
  }
  if (call.d_temperature == nullptr) return;
  // Losses depend on z_i z_j / tau alone, so tau dloss/dtau = -(sum_i z_i . dloss/dz_i) / 2.
  double sum = 0;
  for (int64_t panel = 0; panel < panels.count(); ++panel) sum += sums[panel];
  *static_cast<Real*>(call.d_temperature) = static_cast<Real>(-sum / (2 * temperature));
}

}  // namespace

int64_t forward(const Forward& call) {
  const int64_t half = call.views.first.rows, rows = 2 * half;
  for (int64_t row = 0; call.views.excluded != nullptr && row < rows; ++row) {
    const int64_t other = call.views.excluded[row];
    if (other < -1 || other >= rows || other == (row < half ? row + half : row - half)) return row;
  }
  call.views.first.type == Type::kDouble ? forward_as<double>(call) : forward_as<float>(call);
  return -1;
}

void backward(const Backward& call) {
  call.views.first.type == Type::kDouble ? backward_as<double>(call) : backward_as<float>(call);
}

}  // namespace ntxent
}  // namespace mixfast
