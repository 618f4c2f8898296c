// SPDX-License-Identifier: MIT
// masked_upsample_pool on CUDA: one launch per direction with boxes or ready weights, one more for masks.
// Layout    maps contiguous or channels last, read or written once, in place; 64-bit offsets
// Blocks    a block makes the weights of its image in shared memory, then sums a tile of channels
// Numerics  sums in float (double for double), in an order fixed by the shapes: no atomics, same bits on every run
// Checked   tests/ops/test_masked_upsample_pool.py where there is a GPU; compiled everywhere
#include <algorithm>

#include "masked_upsample_pool/cuda.h"
#include "masked_upsample_pool/cuda_weights.cuh"

namespace mixfast::gpu {
namespace {

constexpr int64_t kTile = 128;                     // channels of a block
constexpr int64_t kSharedBytes = 40 << 10;         // for weights; more positions than fit get them from global memory
constexpr int64_t kSpreadElements = 8 * kThreads;  // of an image's gradient, written by a block

template <class T>
struct Computed {
  using type = float;
};
template <>
struct Computed<double> {
  using type = double;
};
__device__ float as_computed(float v) { return v; }
__device__ double as_computed(double v) { return v; }
__device__ float as_computed(__half v) { return __half2float(v); }
__device__ float as_computed(__nv_bfloat16 v) { return __bfloat162float(v); }
__device__ void put(float* to, float v) { *to = v; }
__device__ void put(double* to, double v) { *to = v; }
__device__ void put(__half* to, float v) { *to = __float2half_rn(v); }
__device__ void put(__nv_bfloat16* to, float v) { *to = __float2bfloat16_rn(v); }

// kGroup lanes share a channel (contiguous maps); 0: a thread has a channel to itself (channels last).
template <class T, int kGroup>
__global__ void pool(const T* features, int64_t channels, int64_t h, int64_t w, Source source, bool ready,
                     typename Computed<T>::type* weights, T* inside, T* outside) {
  using A = typename Computed<T>::type;
  extern __shared__ double shared[];
  const int64_t positions = h * w, tiles = (channels + kTile - 1) / kTile;
  const int64_t image = blockIdx.x / tiles, first = blockIdx.x % tiles * kTile;
  const int64_t last = first + kTile < channels ? first + kTile : channels;
  const int64_t weight_image = source.images == 1 ? 0 : image;
  A* mine = weights + weight_image * 2 * positions;
  if (!ready) {
    A* made = reinterpret_cast<A*>(shared);
    make_weights(source, weight_image, h, w, made);
    __syncthreads();
    if (first == 0 && weight_image == image)
      for (int64_t p = threadIdx.x; p < 2 * positions; p += kThreads) mine[p] = made[p];
    mine = made;
  }
  const T* map = features + image * channels * positions;
  if (kGroup == 0) {
    for (int64_t c = first + threadIdx.x; c < last; c += kThreads) {
      A in = 0, out = 0;
      for (int64_t p = 0; p < positions; ++p) {
        const A value = as_computed(map[p * channels + c]);
        in += value * mine[p];
        out += value * mine[positions + p];
      }
      put(inside + image * channels + c, in);
      put(outside + image * channels + c, out);
    }
    return;
  }
  constexpr int kLanes = kGroup > 0 ? kGroup : 1;
  const int64_t lane = threadIdx.x % kLanes;
  for (int64_t base = first; base < last; base += kThreads / kLanes) {  // whole warps stay together for the shuffles
    const int64_t c = base + threadIdx.x / kLanes;
    A in = 0, out = 0;
    for (int64_t p = lane; c < last && p < positions; p += kLanes) {
      const A value = as_computed(map[c * positions + p]);
      in += value * mine[p];
      out += value * mine[positions + p];
    }
    for (int step = kLanes / 2; step > 0; step /= 2) {
      in += __shfl_xor_sync(kAllLanes, in, step);
      out += __shfl_xor_sync(kAllLanes, out, step);
    }
    if (lane == 0 && c < last) {
      put(inside + image * channels + c, in);
      put(outside + image * channels + c, out);
    }
  }
}

template <class A>
__global__ void weights_only(Source source, int64_t h, int64_t w, A* weights) {
  make_weights(source, blockIdx.x, h, w, weights + blockIdx.x * 2 * h * w);
}

// grad[c, p] = grad_inside[c] inside[p] + grad_outside[c] outside[p]. A thread's elements are kThreads apart; the
// faster index (p, or c if channels are last) runs modulo `fast`, the slower one counts the wraps.
template <class T>
__global__ void spread(const T* grad_inside, const T* grad_outside, int64_t channels, int64_t positions,
                       bool channels_last, int64_t images, const typename Computed<T>::type* weights, T* grad) {
  using A = typename Computed<T>::type;
  const int64_t size = channels * positions, blocks = (size + kSpreadElements - 1) / kSpreadElements;
  const int64_t image = blockIdx.x / blocks, start = blockIdx.x % blocks * kSpreadElements;
  const int64_t end = start + kSpreadElements < size ? start + kSpreadElements : size;
  const A* mine = weights + (images == 1 ? 0 : image) * 2 * positions;
  const T *in = grad_inside + image * channels, *out = grad_outside + image * channels;
  const int64_t fast = channels_last ? channels : positions;
  int64_t slow_index = (start + threadIdx.x) / fast, fast_index = (start + threadIdx.x) % fast;
  for (int64_t e = start + threadIdx.x; e < end; e += kThreads) {
    const int64_t p = channels_last ? slow_index : fast_index, c = channels_last ? fast_index : slow_index;
    put(grad + image * size + e, as_computed(in[c]) * mine[p] + as_computed(out[c]) * mine[positions + p]);
    slow_index += kThreads / fast;
    fast_index += kThreads % fast;
    if (fast_index >= fast) {
      fast_index -= fast;
      ++slow_index;
    }
  }
}

// Makes a device current, and the former one again.
class OnDevice {
 public:
  explicit OnDevice(int device) {
    cudaGetDevice(&former_);
    if (former_ != device) cudaSetDevice(device);
    device_ = device;
  }
  ~OnDevice() {
    if (former_ != device_) cudaSetDevice(former_);
  }

 private:
  int former_ = 0, device_ = 0;
};

const char* description(cudaError_t error) { return error == cudaSuccess ? nullptr : cudaGetErrorString(error); }

template <class M>
void launch_fold(const Regions& regions, int64_t h, int64_t w, double* sums, cudaStream_t stream) {
  fold_mask<M><<<static_cast<unsigned>(regions.images * h), kThreads, 0, stream>>>(
      static_cast<const M*>(regions.data), regions.height, regions.width, h, w, sums);
}

// Where the weights come from, once a mask has been folded into `sums`.
Source source_of(const Regions& regions, int64_t h, int64_t w, double* sums, cudaStream_t stream) {
  if (regions.boxes)
    return {static_cast<const int64_t*>(regions.data), nullptr, regions.images, regions.height, regions.width};
  if (regions.images > 0) {
    switch (regions.mask_dtype) {
      case kFloat32:
        launch_fold<float>(regions, h, w, sums, stream);
        break;
      case kFloat64:
        launch_fold<double>(regions, h, w, sums, stream);
        break;
      case kFloat16:
        launch_fold<__half>(regions, h, w, sums, stream);
        break;
      case kBFloat16:
        launch_fold<__nv_bfloat16>(regions, h, w, sums, stream);
        break;
      default:
        launch_fold<Byte>(regions, h, w, sums, stream);
    }
  }
  return {nullptr, sums, regions.images, regions.height, regions.width};
}

template <class A>
void launch_weights(const Source& source, int64_t h, int64_t w, void* weights, cudaStream_t stream) {
  if (source.images > 0)
    weights_only<<<static_cast<unsigned>(source.images), kThreads, 0, stream>>>(source, h, w, static_cast<A*>(weights));
}

template <class T>
void launch_pool(const Maps& maps, const void* features, const Source& source, bool ready, void* weights, void* inside,
                 void* outside, cudaStream_t stream) {
  using A = typename Computed<T>::type;
  const int64_t positions = maps.h * maps.w;
  const int64_t blocks = maps.batch * ((maps.channels + kTile - 1) / kTile);
  int64_t bytes = 2 * positions * static_cast<int64_t>(sizeof(A));
  if (!ready && (bytes > kSharedBytes || blocks == 0)) {
    launch_weights<A>(source, maps.h, maps.w, weights, stream);
    ready = true;
  }
  if (blocks == 0) return;
  if (ready) bytes = 0;
  const auto kernel = maps.channels_last ? pool<T, 0>
                      : positions <= 4   ? pool<T, 4>
                      : positions <= 16  ? pool<T, 16>
                                         : pool<T, 32>;
  kernel<<<static_cast<unsigned>(blocks), kThreads, bytes, stream>>>(
      static_cast<const T*>(features), maps.channels, maps.h, maps.w, source, ready, static_cast<A*>(weights),
      static_cast<T*>(inside), static_cast<T*>(outside));
}

void pool_by_dtype(const Maps& maps, const void* features, const Source& source, bool ready, void* weights,
                   void* inside, void* outside, cudaStream_t stream) {
  switch (maps.dtype) {
    case kFloat32:
      return launch_pool<float>(maps, features, source, ready, weights, inside, outside, stream);
    case kFloat64:
      return launch_pool<double>(maps, features, source, ready, weights, inside, outside, stream);
    case kFloat16:
      return launch_pool<__half>(maps, features, source, ready, weights, inside, outside, stream);
    default:
      return launch_pool<__nv_bfloat16>(maps, features, source, ready, weights, inside, outside, stream);
  }
}

template <class T>
void launch_spread(const Maps& maps, const void* grad_inside, const void* grad_outside, int64_t images,
                   const void* weights, void* grad, cudaStream_t stream) {
  const int64_t positions = maps.h * maps.w;
  const int64_t blocks = maps.batch * ((maps.channels * positions + kSpreadElements - 1) / kSpreadElements);
  if (blocks == 0) return;
  spread<T><<<static_cast<unsigned>(blocks), kThreads, 0, stream>>>(
      static_cast<const T*>(grad_inside), static_cast<const T*>(grad_outside), maps.channels, positions,
      maps.channels_last, images, static_cast<const typename Computed<T>::type*>(weights), static_cast<T*>(grad));
}

}  // namespace

const char* region_weights(const Place& place, const Regions& regions, int64_t h, int64_t w, bool wide, double* sums,
                           void* weights) {
  const OnDevice on(place.device);
  const auto stream = static_cast<cudaStream_t>(place.stream);
  const Source source = source_of(regions, h, w, sums, stream);
  if (wide) {
    launch_weights<double>(source, h, w, weights, stream);
  } else {
    launch_weights<float>(source, h, w, weights, stream);
  }
  return description(cudaGetLastError());
}

const char* pool_regions(const Place& place, const Maps& maps, const void* features, const Regions& regions,
                         double* sums, void* weights, void* inside, void* outside) {
  const OnDevice on(place.device);
  const auto stream = static_cast<cudaStream_t>(place.stream);
  const Source source = source_of(regions, maps.h, maps.w, sums, stream);
  pool_by_dtype(maps, features, source, false, weights, inside, outside, stream);
  return description(cudaGetLastError());
}

const char* pool_weights(const Place& place, const Maps& maps, const void* features, int64_t images,
                         const void* weights, void* inside, void* outside) {
  const OnDevice on(place.device);
  const Source source{nullptr, nullptr, images, 0, 0};
  pool_by_dtype(maps, features, source, true, const_cast<void*>(weights), inside, outside,
                static_cast<cudaStream_t>(place.stream));
  return description(cudaGetLastError());
}

const char* spread_weights(const Place& place, const Maps& maps, const void* grad_inside, const void* grad_outside,
                           int64_t images, const void* weights, void* grad_features) {
  const OnDevice on(place.device);
  const auto stream = static_cast<cudaStream_t>(place.stream);
  switch (maps.dtype) {
    case kFloat32:
      launch_spread<float>(maps, grad_inside, grad_outside, images, weights, grad_features, stream);
      break;
    case kFloat64:
      launch_spread<double>(maps, grad_inside, grad_outside, images, weights, grad_features, stream);
      break;
    case kFloat16:
      launch_spread<__half>(maps, grad_inside, grad_outside, images, weights, grad_features, stream);
      break;
    default:
      launch_spread<__nv_bfloat16>(maps, grad_inside, grad_outside, images, weights, grad_features, stream);
  }
  return description(cudaGetLastError());
}

}  // namespace mixfast::gpu
