// SPDX-License-Identifier: MIT
// The functions of csrc/pool/cuda.h for tests/cuda/test_emulated_pool.py.
#include "driver.h"
#include "pool/cuda.h"

namespace {

using mixfast::Dtype;
using mixfast::Maps;
using mixfast::Regions;
using mixfast::emulator::Call;

constexpr mixfast::gpu::Place kPlace{0, nullptr};

Maps maps(Call& call) {
  const int64_t batch = call.integer(), channels = call.integer(), h = call.integer(), w = call.integer();
  const auto dtype = static_cast<Dtype>(call.integer());
  return {batch, channels, h, w, dtype, call.integer() != 0};
}

Regions regions(Call& call) {
  const void* data = call.buffer();
  const int64_t images = call.integer(), height = call.integer(), width = call.integer(), dtype = call.integer();
  return {data, images, height, width, dtype < 0, static_cast<Dtype>(dtype)};
}

// Arguments in the order of csrc/pool/bind_cuda.cpp.
const char* region_weights(Call& call) {
  const Regions from = regions(call);
  const int64_t h = call.integer(), w = call.integer(), wide = call.integer();
  void* sums = call.buffer();
  return mixfast::gpu::region_weights(kPlace, from, h, w, wide != 0, sums, call.buffer());
}

const char* pool_regions(Call& call) {
  const Maps shape = maps(call);
  const void* features = call.buffer();
  const Regions from = regions(call);
  void* sums = call.buffer();
  void *weights = call.buffer(), *inside = call.buffer();
  return mixfast::gpu::pool_regions(kPlace, shape, features, from, sums, weights, inside, call.buffer());
}

const char* pool_weights(Call& call) {
  const Maps shape = maps(call);
  const void* features = call.buffer();
  const int64_t images = call.integer();
  const void* weights = call.buffer();
  void* inside = call.buffer();
  return mixfast::gpu::pool_weights(kPlace, shape, features, images, weights, inside, call.buffer());
}

const char* spread_weights(Call& call) {
  const Maps shape = maps(call);
  const void *grad_inside = call.buffer(), *grad_outside = call.buffer();
  const int64_t images = call.integer();
  const void* weights = call.buffer();
  return mixfast::gpu::spread_weights(kPlace, shape, grad_inside, grad_outside, images, weights, call.buffer());
}

}  // namespace

int main() {
  return mixfast::emulator::serve({{"region_weights", region_weights},
                                   {"pool_regions", pool_regions},
                                   {"pool_weights", pool_weights},
                                   {"spread_weights", spread_weights}});
}
