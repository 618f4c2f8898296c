// SPDX-License-Identifier: MIT
// Code that every call of CUDA kernels runs around its launches.
#pragma once

#include "common/launch.cuh"

namespace mixfast::gpu {

// Makes a device current, and restores the former one at the end of the scope.
class OnDevice {
 public:
  explicit OnDevice(int device) : device_(device) {
    cudaGetDevice(&former_);
    if (former_ != device_) cudaSetDevice(device_);
  }
  ~OnDevice() {
    if (former_ != device_) cudaSetDevice(former_);
  }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

 private:
  int former_ = 0, device_;
};

inline const char* description(cudaError_t error) { return error == cudaSuccess ? nullptr : cudaGetErrorString(error); }

}  // namespace mixfast::gpu
