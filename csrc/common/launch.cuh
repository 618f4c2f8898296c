// SPDX-License-Identifier: MIT
// Launches kernels and gives them shared memory. Compiled by nvcc: plain CUDA calls. Compiled by a host compiler: calls
// of the emulator in tests/cuda/emulator, which runs the same kernels on the CPU and cannot parse CUDA's syntax.
#pragma once

#ifdef __CUDACC__
#include <cuda_runtime.h>

#include <cstddef>
#include <map>
#include <mutex>
#include <utility>

namespace mixfast::gpu {

// The block's dynamic shared memory, aligned to 128 bytes.
__device__ inline unsigned char* shared_memory() {
  extern __shared__ __align__(128) unsigned char storage[];
  return storage;
}

// Raises the limit of a kernel's dynamic shared memory; calls CUDA once for each device and larger size.
inline cudaError_t allow_shared(const void* kernel, size_t bytes) {
  static std::mutex guard;
  static std::map<std::pair<const void*, int>, size_t> allowed;
  int device = 0;
  if (const auto error = cudaGetDevice(&device); error != cudaSuccess) return error;
  const std::lock_guard<std::mutex> lock(guard);
  size_t& most = allowed[{kernel, device}];
  if (bytes <= most) return cudaSuccess;
  const auto error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
  if (error == cudaSuccess) most = bytes;
  return error;
}

// Launches kernel<<<grid, block, shared_bytes, stream>>>(args...), or nothing if the grid is empty.
template <class... Parameters, class... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream,
                   const Arguments&... arguments) {
  constexpr size_t kAllowedUnasked = 48 << 10;
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return cudaSuccess;
  if (shared_bytes > kAllowedUnasked) {
    const auto error = allow_shared(reinterpret_cast<const void*>(kernel), shared_bytes);
    if (error != cudaSuccess) return error;
  }
  kernel<<<grid, block, shared_bytes, stream>>>(static_cast<Parameters>(arguments)...);
  return cudaGetLastError();
}

}  // namespace mixfast::gpu

#else
#include "cuda_emulator.h"
#endif
