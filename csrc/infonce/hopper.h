// SPDX-License-Identifier: MIT
// What cuda.cu knows of the kernel for sm_90a.
#pragma once

#include "common/launch.cuh"
#include "infonce/hopper_plan.h"

namespace mixfast::gpu::infonce {

using Launch = cudaError_t (*)(Factors factors, const Call& call, int units, cudaStream_t stream);

inline Launch hopper_launch = nullptr;  // set by hopper.cu, where it is part of the build

}  // namespace mixfast::gpu::infonce
