// SPDX-License-Identifier: MIT
// The element types of maps on CUDA: what they are summed in, and vectors of them.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "common/launch.cuh"

namespace mixfast::gpu {

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

}  // namespace mixfast::gpu
