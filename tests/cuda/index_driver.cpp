// SPDX-License-Identifier: MIT
// Functions without threads for tests/cuda/test_index_functions.py: taps, hats, runs and the division of the work.
#include "common/bilinear.h"
#include "driver.h"
#include "pool/cuda_mask.cuh"
#include "pool/cuda_plan.h"
#include "pool/cuda_weights.cuh"

namespace {

using mixfast::emulator::Call;
using namespace mixfast;
using namespace mixfast::gpu;

// cells, pixels, first, count, out [count, 2]: the taps of some pixels.
const char* taps(Call& call) {
  const int64_t cells = call.integer(), pixels = call.integer(), first = call.integer(), count = call.integer();
  auto* out = call.buffer<int64_t>();
  for (int64_t i = 0; i < count; ++i) {
    const Taps of = taps_of_pixel(first + i, cells, pixels);
    out[2 * i] = of.cell;
    out[2 * i + 1] = of.upper;
  }
  return nullptr;
}

// cells, pixels, from, to, first, count, out [count, 2]: the sums of some cells over an interval, and over all pixels.
const char* axis_sums(Call& call) {
  const int64_t cells = call.integer(), pixels = call.integer(), from = call.integer(), to = call.integer();
  const int64_t first = call.integer(), count = call.integer();
  auto* out = call.buffer<double>();
  for (int64_t i = 0; i < count; ++i) {
    const AxisSum sum = axis_sum(static_cast<int>(first + i), static_cast<int>(cells), pixels, from, to);
    out[2 * i] = sum.box;
    out[2 * i + 1] = sum.whole;
  }
  return nullptr;
}

// cells, pixels, first, count, ends [count, 2], totals [count, 2], uppers [pixels] or null.
const char* runs(Call& call) {
  const int64_t cells = call.integer(), pixels = call.integer(), first = call.integer(), count = call.integer();
  auto* ends = call.buffer<int64_t>();
  auto* totals = call.buffer<double>();
  auto* uppers = call.buffer<int64_t>();
  for (int64_t i = 0; i < count; ++i) {
    const Run run = run_of_cell(static_cast<int>(first + i), static_cast<int>(cells), pixels);
    ends[2 * i] = run.first;
    ends[2 * i + 1] = run.last;
    totals[2 * i] = run.lower_total();
    totals[2 * i + 1] = run.upper_total();
    for (int64_t pixel = run.first; uppers && pixel < run.last; ++pixel) uppers[pixel] = run.upper(pixel);
  }
  return nullptr;
}

// positions, chunk, w, out [chunks, 6]: every span of a map.
const char* spans(Call& call) {
  const int64_t positions = call.integer(), chunk = call.integer(), w = call.integer();
  auto* out = call.buffer<int64_t>();
  for (int64_t first = 0; first < positions; first += chunk, out += 6) {
    const Span span =
        span_of(static_cast<int>(first), static_cast<int>(positions), static_cast<int>(chunk), static_cast<int>(w));
    const int64_t fields[] = {span.first, span.count, span.row, span.rows, span.column, span.columns};
    std::memcpy(out, fields, sizeof(fields));
  }
  return nullptr;
}

Maps maps_of(Call& call) {
  const int64_t batch = call.integer(), channels = call.integer(), h = call.integer(), w = call.integer();
  return {batch, channels, h, w, kFloat32, call.integer() != 0};
}

// maps, element, address, out [9]
const char* pool_plan_of(Call& call) {
  const Maps maps = maps_of(call);
  const int64_t element = call.integer(), sum_size = element == 8 ? 8 : 4;
  const auto* address = reinterpret_cast<const void*>(call.integer());
  const PoolPlan plan = maps.channels_last ? plan_pool_last(maps, address, element, sum_size, kThreads)
                                           : plan_pool(maps, address, element, sum_size, kThreads);
  const int64_t fields[] = {plan.vector,    plan.lanes,   plan.channels, plan.tiles,     plan.chunk,
                            plan.row_bytes, plan.weights, plan.scratch,  plan.used_bytes};
  std::memcpy(call.buffer(), fields, sizeof(fields));
  return nullptr;
}

// maps, element, address, out [7]
const char* spread_plan_of(Call& call) {
  const Maps maps = maps_of(call);
  const int64_t element = call.integer();
  const auto* address = reinterpret_cast<const void*>(call.integer());
  const SpreadPlan plan =
      maps.channels_last ? plan_spread_last(maps, address, element, address, address) : plan_spread(maps, element, 256);
  const int64_t fields[] = {plan.vector,   plan.lanes,     plan.period, plan.columns,
                            plan.channels, plan.positions, plan.tiles};
  std::memcpy(call.buffer(), fields, sizeof(fields));
  return nullptr;
}

}  // namespace

int main() {
  return mixfast::emulator::serve({{"taps", taps},
                                   {"axis_sums", axis_sums},
                                   {"runs", runs},
                                   {"spans", spans},
                                   {"pool_plan", pool_plan_of},
                                   {"spread_plan", spread_plan_of}});
}
