// SPDX-License-Identifier: MIT
// How kernels are launched and get shared memory. By nvcc: the plain CUDA calls. By any host compiler: the emulator of
// tests/cuda/emulator, which runs the same kernels on the CPU; it needs these two functions in place of CUDA's syntax.
#pragma once

#ifdef __CUDACC__
#include <cuda_runtime.h>

#include <cstddef>

namespace mixfast::gpu {

// The block's dynamic shared memory, aligned to 128 bytes.
__device__ inline unsigned char* shared_memory() {
  extern __shared__ __align__(128) unsigned char storage[];
  return storage;
}

// Launches kernel<<<grid, block, shared_bytes, stream>>>(args...), or nothing if the grid is empty.
template <class... Parameters, class... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream,
                   const Arguments&... arguments) {
  constexpr size_t kAllowedUnasked = 48 << 10;
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return cudaSuccess;
  if (shared_bytes > kAllowedUnasked) {
    const auto error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes));
    if (error != cudaSuccess) return error;
  }
  kernel<<<grid, block, shared_bytes, stream>>>(static_cast<Parameters>(arguments)...);
  return cudaGetLastError();
}

}  // namespace mixfast::gpu

#else
#include "cuda_emulator.h"
#endif
