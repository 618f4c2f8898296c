// SPDX-License-Identifier: MIT
// masked_upsample_pool on CPU: cuts a batch into tasks and runs them on threads.
// Layout    maps are read or written once, in place, contiguous or channels last
// Threads   one task = the weights of an image, or a run of channels of an image; no cell has two writers and no sum
//           crosses tasks: same bits for any thread count
// Checked   tests/ops/test_masked_upsample_pool.py
#include "pool/cpu.h"

#include <algorithm>
#include <vector>

#include "common/cpu_features.h"
#include "pool/region_weights.h"

namespace mixfast {
namespace {

constexpr int64_t kBytesPerElement[kFeatureDtypes] = {4, 8, 2, 2};
constexpr int64_t kChannelStep = 64;          // channels of a task: a multiple, so that most tasks have whole vectors
constexpr int64_t kBytesPerThread = 1 << 15;  // less work than this is not worth waking a thread

// The table for `pool`, and the one for the other three.
const PoolKernels& pool_kernels(Dtype dtype) {
#if defined(__x86_64__)
  static const PoolKernels* const kernels = has_avx2() ? kAvx2Pool : kBaselinePool;
  return kernels[dtype];
#else
  return kBaselinePool[dtype];
#endif
}

const PoolKernels& stream_kernels(Dtype dtype) {
#if defined(__x86_64__)
  static const bool wide = has_avx512_bf16();
  if (wide) return kAvx512Streams[dtype];
#endif
  return pool_kernels(dtype);
}

const WeightKernels& weight_kernels() {
#if defined(__x86_64__)
  static const WeightKernels& kernels = has_avx2() ? kAvx2Weights : kBaselineWeights;
  return kernels;
#else
  return kBaselineWeights;
#endif
}

int useful_threads(int64_t bytes, int threads) {
  return static_cast<int>(std::max<int64_t>(1, std::min<int64_t>(threads, bytes / kBytesPerThread)));
}

int64_t bytes_of(const Maps& maps) {
  return maps.batch * maps.channels * maps.h * maps.w * kBytesPerElement[maps.dtype];
}

int64_t bytes_of(const Regions& regions) {
  return regions.boxes ? 512 * regions.images : regions.images * regions.height * regions.width;
}

// How a batch is cut: a task is `step` channels of an image, all of them unless images are too few for the threads.
struct Cut {
  int64_t step, per_image, tasks;

  Cut(const Maps& maps, int threads) {
    const int64_t batch = std::max<int64_t>(1, maps.batch), wanted = 4 * threads;
    const int64_t parts = (wanted + batch - 1) / batch;
    step = ((maps.channels + parts - 1) / parts + kChannelStep - 1) / kChannelStep * kChannelStep;
    per_image = step > 0 ? (maps.channels + step - 1) / step : 0;
    tasks = maps.batch * per_image;
  }
};

// Where a task's channels are, in bytes: in maps, in results and grads, and the weights of its image.
struct Task {
  int64_t positions, channels, stride, map, channel, inside, outside;

  Task(const Maps& maps, const Cut& cut, int64_t weight_images, int64_t index) {
    const int64_t image = index / cut.per_image, first = index % cut.per_image * cut.step;
    const int64_t element = kBytesPerElement[maps.dtype], weight = maps.dtype == kFloat64 ? 8 : 4;
    positions = maps.h * maps.w;
    channels = std::min(cut.step, maps.channels - first);
    stride = maps.channels;
    map = (image * maps.channels * positions + first * (maps.channels_last ? 1 : positions)) * element;
    channel = (image * maps.channels + first) * element;
    inside = (weight_images == 1 ? 0 : image) * 2 * positions * weight;
    outside = inside + positions * weight;
  }
};

const char* at(const void* base, int64_t bytes) { return static_cast<const char*>(base) + bytes; }
char* at(void* base, int64_t bytes) { return static_cast<char*>(base) + bytes; }

void pool_task(const Maps& maps, const Task& t, const void* features, const void* weights, void* inside,
               void* outside) {
  if (maps.channels_last) {
    stream_kernels(maps.dtype)
        .pool_last(at(features, t.map), t.positions, t.channels, t.stride, at(weights, t.inside),
                   at(weights, t.outside), at(inside, t.channel), at(outside, t.channel));
  } else {
    pool_kernels(maps.dtype)
        .pool(at(features, t.map), t.positions, t.channels, at(weights, t.inside), at(weights, t.outside),
              at(inside, t.channel), at(outside, t.channel));
  }
}

void spread_task(const Maps& maps, const Task& t, const void* grad_inside, const void* grad_outside,
                 const void* weights, void* grad_features) {
  const PoolKernels& k = stream_kernels(maps.dtype);
  if (maps.channels_last) {
    k.spread_last(at(grad_inside, t.channel), at(grad_outside, t.channel), t.positions, t.channels, t.stride,
                  at(weights, t.inside), at(weights, t.outside), at(grad_features, t.map));
  } else {
    k.spread(at(grad_inside, t.channel), at(grad_outside, t.channel), t.positions, t.channels, at(weights, t.inside),
             at(weights, t.outside), at(grad_features, t.map));
  }
}

}  // namespace

bool region_weights(const Regions& regions, int64_t h, int64_t w, bool wide, void* weights, int threads) {
  const WeightMaker maker(weight_kernels(), regions, h, w, wide);
  const int64_t size = 2 * h * w * (wide ? 8 : 4);
  const int n = useful_threads(bytes_of(regions), threads);
  bool valid = true;
#pragma omp parallel num_threads(n) if (n > 1)
  {
    std::vector<double> scratch(static_cast<size_t>(maker.scratch_size()));
#pragma omp for schedule(static) reduction(&& : valid)
    for (int64_t image = 0; image < regions.images; ++image)
      valid = maker.make(image, at(weights, image * size), scratch.data()) && valid;
  }
  return valid;
}

bool pool_regions(const Maps& maps, const void* features, const Regions& regions, void* weights, void* inside,
                  void* outside, int threads) {
  const bool wide = maps.dtype == kFloat64;
  const WeightMaker maker(weight_kernels(), regions, maps.h, maps.w, wide);
  const int64_t size = 2 * maps.h * maps.w * (wide ? 8 : 4);
  const int n = useful_threads(bytes_of(maps) + bytes_of(regions), threads);
  const Cut cut(maps, n);
  bool valid = true;
#pragma omp parallel num_threads(n) if (n > 1)
  {
    std::vector<double> scratch(static_cast<size_t>(maker.scratch_size()));
#pragma omp for schedule(static) reduction(&& : valid)
    for (int64_t image = 0; image < regions.images; ++image)
      valid = maker.make(image, at(weights, image * size), scratch.data()) && valid;
#pragma omp for schedule(static)
    for (int64_t task = 0; task < cut.tasks; ++task)
      pool_task(maps, Task(maps, cut, regions.images, task), features, weights, inside, outside);
  }
  return valid;
}

void pool_weights(const Maps& maps, const void* features, int64_t images, const void* weights, void* inside,
                  void* outside, int threads) {
  const int n = useful_threads(bytes_of(maps), threads);
  const Cut cut(maps, n);
#pragma omp parallel for num_threads(n) if (n > 1) schedule(static)
  for (int64_t task = 0; task < cut.tasks; ++task)
    pool_task(maps, Task(maps, cut, images, task), features, weights, inside, outside);
}

void spread_weights(const Maps& maps, const void* grad_inside, const void* grad_outside, int64_t images,
                    const void* weights, void* grad_features, int threads) {
  const int n = useful_threads(bytes_of(maps), threads);
  const Cut cut(maps, n);
#pragma omp parallel for num_threads(n) if (n > 1) schedule(static)
  for (int64_t task = 0; task < cut.tasks; ++task)
    spread_task(maps, Task(maps, cut, images, task), grad_inside, grad_outside, weights, grad_features);
}

}  // namespace mixfast
