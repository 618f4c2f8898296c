// SPDX-License-Identifier: MIT
// split_batch_norm on CUDA: three launches per direction.
// Checked   tests/cuda on the CPU under sanitizers; tests/ops/test_split_batch_norm.py where there is a GPU
#include "common/on_device.cuh"
#include "norm/cuda.h"
#include "norm/cuda_backward.cuh"
#include "norm/cuda_forward.cuh"

namespace mixfast::gpu::norm {
namespace {

// Calls f with a value of the type.
template <class F>
cudaError_t with_type(Type type, const F& f) {
  switch (type) {
    case Type::kFloat:
      return f(float{});
    case Type::kHalf:
      return f(__half{});
    default:
      return f(__nv_bfloat16{});
  }
}

template <class T>
constexpr int kFull = kVectorBytes / sizeof(T);

// A block for each chunk of each tile of channels of each group, and that much shared memory for each thread.
template <class Call>
cudaError_t launch_over(void (*kernel)(Call), const Call& call, int64_t thread_bytes, cudaStream_t stream) {
  const Cut& cut = call.cut;
  return launch(kernel, static_cast<unsigned>(cut.groups * cut.tiles * cut.chunks), kThreads,
                static_cast<size_t>(kThreads * thread_bytes), stream, call);
}

template <class Call>
cudaError_t launch_merge(void (*kernel)(Call), const Cut& cut, const Call& call, int64_t part_bytes,
                         cudaStream_t stream) {
  return launch(kernel, static_cast<unsigned>(cut.groups * divided_up(cut.channels, kMergedChannels)), kThreads,
                static_cast<size_t>(kThreads * part_bytes), stream, call);
}

float numbers_of(const Maps& maps) { return static_cast<float>(maps.samples / maps.groups * maps.pixels); }

template <class T>
cudaError_t launch_forward(const Forward& call, cudaStream_t stream) {
  const Cut cut = cut_of(call.maps, {call.x, call.residual, call.y});
  const bool full = cut.vector == kFull<T>, added = call.residual != nullptr;
  const int channels = static_cast<int>(cut.channels), chunks = static_cast<int>(cut.chunks);
  auto* partials = static_cast<Moments*>(call.workspace);
  float* variances = reinterpret_cast<float*>(partials + cut.groups * cut.chunks * cut.channels);
  float *means = static_cast<float*>(call.means), *inverses = static_cast<float*>(call.inverses);
  const auto* x = static_cast<const T*>(call.x);

  const MomentsCall<T> first{cut, x, partials};
  cudaError_t error =
      launch_over(full ? moments<T, kFull<T>> : moments<T, 1>, first, cut.vector * sizeof(Moments), stream);
  if (error != cudaSuccess) return error;
  const MergeMomentsCall second{
      channels, chunks, numbers_of(call.maps), static_cast<float>(call.eps), partials, means, inverses, variances};
  error = launch_merge(merge_moments, cut, second, sizeof(Moments), stream);
  if (error != cudaSuccess) return error;
  const NormaliseCall<T> third{cut,
                               x,
                               static_cast<const T*>(call.residual),
                               static_cast<T*>(call.y),
                               static_cast<const float*>(call.weight),
                               static_cast<const float*>(call.bias),
                               means,
                               inverses,
                               variances,
                               static_cast<float*>(call.running_mean),
                               static_cast<float*>(call.running_var),
                               static_cast<float>(1 - call.momentum),
                               static_cast<float>(call.momentum),
                               call.relu};
  const auto kernel = added ? (full ? normalise<T, kFull<T>, true> : normalise<T, 1, true>)
                            : (full ? normalise<T, kFull<T>, false> : normalise<T, 1, false>);
  return launch_over(kernel, third, 3 * sizeof(float), stream);
}

template <class T, int V>
auto products_kernel(bool mask, bool write) {
  return write ? products<T, V, true, true> : mask ? products<T, V, true, false> : products<T, V, false, false>;
}

template <class T>
cudaError_t launch_backward(const Backward& call, cudaStream_t stream) {
  const Cut cut = cut_of(call.maps, {call.dy, call.x, call.y, call.dx, call.d_residual});
  const bool full = cut.vector == kFull<T>, write = call.d_residual != nullptr, mask = call.y != nullptr;
  const int channels = static_cast<int>(cut.channels), chunks = static_cast<int>(cut.chunks);
  auto* partials = static_cast<Sums*>(call.workspace);
  float* plain = reinterpret_cast<float*>(partials + cut.groups * cut.chunks * cut.channels);
  float* weighted = plain + cut.groups * cut.channels;
  const auto *dy = static_cast<const T*>(call.dy), *x = static_cast<const T*>(call.x),
             *y = static_cast<const T*>(call.y);
  const auto *means = static_cast<const float*>(call.means), *inverses = static_cast<const float*>(call.inverses);
  auto* masked = static_cast<T*>(call.d_residual);

  const ProductsCall<T> first{cut, dy, x, y, masked, means, partials};
  cudaError_t error = launch_over(full ? products_kernel<T, kFull<T>>(mask, write) : products_kernel<T, 1>(mask, write),
                                  first, cut.vector * sizeof(Sums), stream);
  if (error != cudaSuccess) return error;
  const MergeProductsCall second{channels, chunks, partials, inverses, plain, weighted};
  error = launch_merge(merge_products, cut, second, sizeof(Sums), stream);
  if (error != cudaSuccess) return error;
  const bool again = mask && !write;  // else what arrives is dy, or has been written
  const GradientCall<T> third{cut,
                              write ? masked : dy,
                              x,
                              y,
                              static_cast<T*>(call.dx),
                              static_cast<const float*>(call.weight),
                              means,
                              inverses,
                              plain,
                              weighted,
                              numbers_of(call.maps),
                              static_cast<float*>(call.d_weight),
                              static_cast<float*>(call.d_bias)};
  const auto kernel = again ? (full ? gradient<T, kFull<T>, true> : gradient<T, 1, true>)
                            : (full ? gradient<T, kFull<T>, false> : gradient<T, 1, false>);
  return launch_over(kernel, third, 4 * sizeof(float), stream);
}

}  // namespace

int64_t workspace_numbers(const Maps& maps) {
  int64_t chunks = 0;
  for (const int64_t vector : {int64_t{1}, widest(maps)})
    chunks = std::max<int64_t>(chunks, cut_by(maps, vector).chunks);
  return maps.groups * maps.channels * (3 * chunks + 2);
}

const char* forward(const Place& place, const Forward& call) {
  if (!can_plan(call.maps)) return description(cudaErrorInvalidValue);
  const OnDevice on(place.device);
  const auto stream = static_cast<cudaStream_t>(place.stream);
  return description(
      with_type(call.maps.type, [&](auto type) { return launch_forward<decltype(type)>(call, stream); }));
}

const char* backward(const Place& place, const Backward& call) {
  if (!can_plan(call.maps)) return description(cudaErrorInvalidValue);
  const OnDevice on(place.device);
  const auto stream = static_cast<cudaStream_t>(place.stream);
  return description(
      with_type(call.maps.type, [&](auto type) { return launch_backward<decltype(type)>(call, stream); }));
}

}  // namespace mixfast::gpu::norm
