// SPDX-License-Identifier: MIT
// masked_upsample_pool on CUDA: one launch per direction with boxes or ready weights, one more for masks.
// Checked   tests/cuda on the CPU under sanitizers; tests/ops/test_masked_upsample_pool.py where there is a GPU
#include "common/on_device.cuh"
#include "pool/cuda.h"
#include "pool/cuda_mask.cuh"
#include "pool/cuda_pool.cuh"
#include "pool/cuda_spread.cuh"

namespace mixfast::gpu {
namespace {

// Calls f with a value of the type that `dtype` names.
template <class F>
cudaError_t with_type(Dtype dtype, const F& f) {
  switch (dtype) {
    case kFloat32:
      return f(float{});
    case kFloat64:
      return f(double{});
    case kFloat16:
      return f(__half{});
    default:
      return f(__nv_bfloat16{});
  }
}

// A grid of that many blocks; one that no launch accepts if they are too many.
unsigned grid_of(int64_t blocks) { return static_cast<unsigned>(std::min<int64_t>(blocks, int64_t{1} << 31)); }

template <class M, class A>
cudaError_t launch_fold(const Regions& regions, int64_t h, int64_t w, A* sums, cudaStream_t stream) {
  const int64_t quads = divided_up(regions.width, kFoldColumns);
  const int threads = static_cast<int>(std::min<int64_t>(kFoldThreads, divided_up(quads, kWarp) * kWarp));
  const size_t bytes = ColumnSums<M>::kKinds * held_at(threads * kFoldColumns) * sizeof(double);
  return launch(fold_mask<M, A>, grid_of(regions.images * h), threads, bytes, stream,
                static_cast<const M*>(regions.data), regions.height, regions.width, h, w, sums);
}

// Where the weights come from, once masks have been folded into `sums`.
template <class A>
cudaError_t prepare(const Regions& regions, int64_t h, int64_t w, void* sums, cudaStream_t stream, Source<A>& source) {
  source = {nullptr, nullptr, nullptr, regions.images, regions.height, regions.width};
  if (regions.boxes) {
    source.boxes = static_cast<const int64_t*>(regions.data);
    return cudaSuccess;
  }
  auto* folded = static_cast<A*>(sums);
  source.sums = folded;
  if (regions.mask_dtype == kByte) return launch_fold<Byte>(regions, h, w, folded, stream);
  return with_type(regions.mask_dtype,
                   [&](auto type) { return launch_fold<decltype(type)>(regions, h, w, folded, stream); });
}

template <class A>
cudaError_t launch_weights(const Source<A>& source, int64_t h, int64_t w, A* weights, cudaStream_t stream) {
  const int64_t positions = h * w;
  if (positions == 0) return cudaSuccess;
  const int64_t chunk = std::min(positions, kWeightsChunk), scratch = scratch_bytes(chunk, h, w);
  return launch(weights_only<A>, grid_of(source.images * divided_up(positions, chunk)), kThreads,
                static_cast<size_t>(scratch) + chunk * sizeof(Pair<A>), stream, source, h, w, chunk, scratch, weights);
}

template <class T>
cudaError_t launch_pool(const Maps& maps, const void* features, const Source<Sum<T>>& source, void* weights,
                        void* inside, void* outside, cudaStream_t stream) {
  constexpr int kFull = kVectorBytes / sizeof(T), kHalf = sizeof(T) == 2 ? kFull / 2 : 1;
  auto* made = static_cast<Sum<T>*>(weights);
  if (maps.batch * maps.channels == 0)
    return source.ready ? cudaSuccess : launch_weights(source, maps.h, maps.w, made, stream);
  const PoolPlan plan = maps.channels_last ? plan_pool_last(maps, features, sizeof(T), sizeof(Sum<T>), kThreads)
                                           : plan_pool(maps, features, sizeof(T), sizeof(Sum<T>), kThreads);
  const PoolCall<T> call{static_cast<const T*>(features),
                         maps.batch,
                         static_cast<int>(maps.channels),
                         static_cast<int>(maps.h),
                         static_cast<int>(maps.w),
                         source,
                         plan,
                         made,
                         static_cast<T*>(inside),
                         static_cast<T*>(outside)};
  const auto kernel = maps.channels_last     ? (plan.vector == kFull ? pool_last<T, kFull> : pool_last<T, 1>)
                      : plan.vector == 1     ? pool<T, 1, kLanes>
                      : plan.vector < kFull  ? pool<T, kHalf, kLanes>
                      : plan.lanes == kLanes ? pool<T, kFull, kLanes>
                                             : pool<T, kFull, short_lanes(sizeof(T))>;
  return launch(kernel, grid_of(maps.batch * plan.tiles), kThreads, static_cast<size_t>(plan.used_bytes), stream, call);
}

template <class T>
cudaError_t launch_spread(const Maps& maps, const void* grad_inside, const void* grad_outside, int64_t images,
                          const void* weights, void* grad, cudaStream_t stream) {
  constexpr int kFull = kVectorBytes / sizeof(T);
  if (maps.batch * maps.channels * maps.h * maps.w == 0) return cudaSuccess;
  const SpreadPlan plan = maps.channels_last ? plan_spread_last(maps, grad, sizeof(T), grad_inside, grad_outside)
                                             : plan_spread(maps, sizeof(T), kSpreadThreads);
  const SpreadCall<T> call{static_cast<const T*>(grad_inside),
                           static_cast<const T*>(grad_outside),
                           static_cast<int>(maps.channels),
                           static_cast<int>(maps.h * maps.w),
                           images,
                           static_cast<const Sum<T>*>(weights),
                           plan,
                           static_cast<T*>(grad)};
  const bool full = plan.vector == kFull;
  const auto kernel = maps.channels_last ? (full ? spread_last<T, kFull> : spread_last<T, 1>)
                                         : (full ? spread<T, kFull> : spread<T, 1>);
  return launch(kernel, grid_of(maps.batch * plan.tiles), kSpreadThreads, 0, stream, call);
}

template <class A>
cudaError_t make_weights(const Regions& regions, int64_t h, int64_t w, void* sums, void* weights, cudaStream_t stream) {
  Source<A> source;
  const cudaError_t error = prepare(regions, h, w, sums, stream, source);
  return error != cudaSuccess ? error : launch_weights(source, h, w, static_cast<A*>(weights), stream);
}

}  // namespace

const char* region_weights(const Place& place, const Regions& regions, int64_t h, int64_t w, bool wide, void* sums,
                           void* weights) {
  if (!can_plan(h, w)) return description(cudaErrorInvalidValue);
  const OnDevice on(place.device);
  const auto stream = static_cast<cudaStream_t>(place.stream);
  return description(wide ? make_weights<double>(regions, h, w, sums, weights, stream)
                          : make_weights<float>(regions, h, w, sums, weights, stream));
}

const char* pool_regions(const Place& place, const Maps& maps, const void* features, const Regions& regions, void* sums,
                         void* weights, void* inside, void* outside) {
  if (!can_plan(maps.h, maps.w, maps.channels)) return description(cudaErrorInvalidValue);
  const OnDevice on(place.device);
  const auto stream = static_cast<cudaStream_t>(place.stream);
  return description(with_type(maps.dtype, [&](auto type) {
    using T = decltype(type);
    Source<Sum<T>> source;
    const cudaError_t error = prepare(regions, maps.h, maps.w, sums, stream, source);
    return error != cudaSuccess ? error : launch_pool<T>(maps, features, source, weights, inside, outside, stream);
  }));
}

const char* pool_weights(const Place& place, const Maps& maps, const void* features, int64_t images,
                         const void* weights, void* inside, void* outside) {
  if (!can_plan(maps.h, maps.w, maps.channels)) return description(cudaErrorInvalidValue);
  const OnDevice on(place.device);
  const auto stream = static_cast<cudaStream_t>(place.stream);
  return description(with_type(maps.dtype, [&](auto type) {
    using T = decltype(type);
    const Source<Sum<T>> source{nullptr, nullptr, static_cast<const Sum<T>*>(weights), images, 0, 0};
    return launch_pool<T>(maps, features, source, nullptr, inside, outside, stream);
  }));
}

const char* spread_weights(const Place& place, const Maps& maps, const void* grad_inside, const void* grad_outside,
                           int64_t images, const void* weights, void* grad_features) {
  if (!can_plan(maps.h, maps.w, maps.channels)) return description(cudaErrorInvalidValue);
  const OnDevice on(place.device);
  const auto stream = static_cast<cudaStream_t>(place.stream);
  return description(with_type(maps.dtype, [&](auto type) {
    return launch_spread<decltype(type)>(maps, grad_inside, grad_outside, images, weights, grad_features, stream);
  }));
}

}  // namespace mixfast::gpu
