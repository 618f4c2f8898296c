// SPDX-License-Identifier: MIT
// masked_upsample_pool on CUDA: element types, what they are summed in, and 16-byte vectors of them.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "common/launch.cuh"
#include "pool/cpu.h"

namespace mixfast::gpu {

constexpr int kThreads = 128;  // of every block but those of `spread` and `fold_mask`
constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

template <class T>
struct Computed {
  using type = float;
};
template <>
struct Computed<double> {
  using type = double;
};
template <class T>
using Sum = typename Computed<T>::type;

__device__ inline float as_computed(float v) { return v; }
__device__ inline double as_computed(double v) { return v; }
__device__ inline float as_computed(__half v) { return __half2float(v); }
__device__ inline float as_computed(__nv_bfloat16 v) { return __bfloat162float(v); }
__device__ inline void put(float& to, float v) { to = v; }
__device__ inline void put(double& to, double v) { to = v; }
__device__ inline void put(__half& to, float v) { to = __float2half_rn(v); }
__device__ inline void put(__nv_bfloat16& to, float v) { to = __float2bfloat16_rn(v); }

// Read and written in one access.
template <class T, int V>
struct alignas(V * sizeof(T)) Vector {
  T values[V];
};

template <class T, int V>
__device__ const Vector<T, V>& vector_at(const T* from) {
  return *reinterpret_cast<const Vector<T, V>*>(from);
}

// Weights of a position, or sums of a channel.
template <class A>
struct alignas(2 * sizeof(A)) Pair {
  A inside, outside;
};

template <class A>
__device__ void add_product(Pair<A>& sums, A value, const Pair<A>& weights) {
  sums.inside += value * weights.inside;
  sums.outside += value * weights.outside;
}

}  // namespace mixfast::gpu
