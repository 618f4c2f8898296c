// SPDX-License-Identifier: MIT
// The forward pass of multi_queue_infonce on CPU: cuts the work into units, runs them, merges their results.
//
// Shapes    a group is the rows of all terms that read one queue; a unit is some panels of a group x a chunk of keys
// Threads   units are taken by whoever is free, each writes its own memory; a panel's chunks are merged in order. The
//           cut depends on shapes alone, so the bits are the same for any number of threads
// Memory    partial results of all units, at most kPartialBytes unless one chunk per queue needs more
// Checked   tests/ops/test_multi_queue_infonce.py; derivation in docs/maths.md
#include "infonce/cpu.h"

#include <algorithm>
#include <atomic>
#include <memory>
#include <utility>

#include "common/rows.h"
#include "infonce/merge.h"

namespace mixfast {
namespace infonce {
namespace {

constexpr int64_t kUnits = 64;                 // wanted: enough for any number of cores
constexpr int64_t kUnitPanels = 4;             // at most: their queries and means stay in the level-2 cache
constexpr int64_t kChunkKeys = 8 * kTileKeys;  // at least, so that merging costs little
constexpr int64_t kPartialBytes = 4 << 20;
constexpr double kThreadWork = 1e6;  // multiplications that are worth another thread

// Some panels of a group and one chunk of its queue's keys.
struct Task {
  const Group* group;
  int64_t first_panel, panels, chunk;
};

struct Plan {
  std::vector<Row> rows;  // group after group
  std::vector<Group> groups;
  std::vector<Task> tasks;
  int64_t lanes = 0;  // of all partial results
  double work = 0;
};

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

void gather_rows(const Forward& call, Plan* plan) {
  for (int64_t queue = 0; queue < static_cast<int64_t>(call.queues.size()); ++queue) {
    const int64_t first = static_cast<int64_t>(plan->rows.size());
    int64_t index = 0;
    for (const Term& term : call.terms) {
      for (int64_t row = 0; term.queue == queue && row < term.queries.rows; ++row) {
        plan->rows.push_back(
            {row_address(term.queries, row), row_address(term.positives, row), term.temperature, index + row});
      }
      index += term.queries.rows;
    }
    const int64_t rows = static_cast<int64_t>(plan->rows.size()) - first;
    if (rows > 0) plan->groups.push_back({queue, first, rows, panels_of(rows), 1, 0});
  }
}

void add_tasks(const Forward& call, int64_t real_bytes, Plan* plan) {
  int64_t unit_panels = kUnitPanels, panels = 0;
  const auto blocks = [&] {
    int64_t count = 0;
    for (const Group& group : plan->groups) count += ceil_div(group.panels, unit_panels);
    return count;
  };
  while (blocks() < kUnits / 4 && unit_panels > 1) unit_panels /= 2;
  for (const Group& group : plan->groups) panels += group.panels;
  const int64_t affordable = kPartialBytes / (panels * kPanelRows * (call.dim + 2) * real_bytes);
  const int64_t chunks = std::max<int64_t>(1, std::min(ceil_div(kUnits, blocks()), affordable));
  for (Group& group : plan->groups) {
    const int64_t keys = call.queues[group.queue].rows;
    group.chunks = std::min(chunks, std::max<int64_t>(1, ceil_div(keys, kChunkKeys)));
    group.first_lane = plan->lanes;
    plan->lanes += group.chunks * group.lanes();
    plan->work += 2.0 * static_cast<double>(group.rows) * static_cast<double>(keys) * static_cast<double>(call.dim);
    for (int64_t chunk = 0; chunk < group.chunks; ++chunk) {  // outer: neighbours in time share the chunk in the cache
      for (int64_t panel = 0; panel < group.panels; panel += unit_panels) {
        plan->tasks.push_back({&group, panel, std::min(unit_panels, group.panels - panel), chunk});
      }
    }
  }
}

template <class Real>
void run(const Unit<Real>& unit, Isa isa) {
#if defined(__x86_64__)
  if (isa == Isa::kAvx512) return avx512::run(unit);
  if (isa == Isa::kAvx2) return avx2::run(unit);
#endif
  (void)isa;
  baseline::run(unit);
}

template <class Real>
void run_task(const Forward& call, const Plan& plan, const Task& task, const Partials<Real>& partials, Real* scratch) {
  const Group& group = *task.group;
  const int64_t first = task.first_panel * kPanelRows;
  const int64_t lane = group.first_lane + task.chunk * group.lanes() + first;
  const void* queries[kUnitPanels * kPanelRows];
  Real scale[kUnitPanels * kPanelRows] = {};
  Unit<Real> unit;
  unit.rows = std::min(task.panels * kPanelRows, group.rows - first);
  for (int64_t r = 0; r < unit.rows; ++r) {
    const Row& row = plan.rows[group.first_row + first + r];
    queries[r] = row.query;
    scale[r] = scale_of<Real>(row.temperature);
  }
  unit.queries = queries;
  unit.query_type = call.terms[0].queries.type;
  unit.dim = call.dim;
  unit.keys = call.queues[group.queue];
  const int64_t tiles = ceil_div(unit.keys.rows, kTileKeys);
  unit.first_key = task.chunk * tiles / group.chunks * kTileKeys;
  unit.last_key = std::min((task.chunk + 1) * tiles / group.chunks * kTileKeys, unit.keys.rows);
  unit.scale = scale;
  unit.max = partials.max + lane;
  unit.sum = partials.sum + lane;
  unit.mean = partials.mean == nullptr ? nullptr : partials.mean + lane * call.dim;
  unit.scratch = scratch;
  run(unit, call.isa);
}

// Calls work(index) for every index below `count`, by whichever of `threads` threads is free. `begin` makes what a
// thread needs for itself.
template <class Begin>
void in_parallel(int64_t count, int threads, Begin begin) {
  std::atomic<int64_t> next{0};
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    auto work = begin();
    for (int64_t i = next.fetch_add(1); i < count; i = next.fetch_add(1)) work(i);
  }
}

template <class Real>
void reduce(const Forward& call, const Real* row_losses, Real* losses) {
  for (const Term& term : call.terms) {
    double sum = 0;
    for (int64_t row = 0; row < term.queries.rows; ++row) sum += static_cast<double>(*row_losses++);
    *losses++ =
        static_cast<Real>(call.reduction == Reduction::kMean ? sum / static_cast<double>(term.queries.rows) : sum);
  }
}

template <class Real>
void forward_as(const Forward& call) {
  Plan plan;
  gather_rows(call, &plan);
  add_tasks(call, sizeof(Real), &plan);
  const int threads = static_cast<int>(std::min<double>(call.threads, 1 + plan.work / kThreadWork));

  // Not vectors: those would clear the memory first.
  const std::unique_ptr<Real[]> statistics(new Real[2 * plan.lanes]);
  const std::unique_ptr<Real[]> means(call.grad_queries == nullptr ? nullptr : new Real[plan.lanes * call.dim]);
  const Partials<Real> partials = {statistics.get(), statistics.get() + plan.lanes, means.get()};
  in_parallel(static_cast<int64_t>(plan.tasks.size()), threads, [&] {
    std::unique_ptr<Real[]> scratch(new Real[unit_scratch(kUnitPanels * kPanelRows, call.dim)]);
    return
        [&, scratch = std::move(scratch)](int64_t i) { run_task(call, plan, plan.tasks[i], partials, scratch.get()); };
  });

  const std::unique_ptr<Real[]> rows(call.reduction == Reduction::kNone ? nullptr : new Real[plan.rows.size()]);
  Real* const row_losses = rows ? rows.get() : static_cast<Real*>(call.losses);
  const Merge<Real> merge = {call, plan.rows.data(), partials, row_losses};
  std::vector<std::pair<const Group*, int64_t>> panels;
  for (const Group& group : plan.groups) {
    for (int64_t panel = 0; panel < group.panels; ++panel) panels.emplace_back(&group, panel);
  }
  in_parallel(static_cast<int64_t>(panels.size()), threads,
              [&] { return [&](int64_t i) { merge.run(*panels[i].first, panels[i].second); }; });
  if (rows) reduce(call, row_losses, static_cast<Real*>(call.losses));
}

}  // namespace

void forward(const Forward& call) {
  call.terms[0].queries.type == Type::kDouble ? forward_as<double>(call) : forward_as<float>(call);
}

}  // namespace infonce
}  // namespace mixfast
