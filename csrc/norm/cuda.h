// SPDX-License-Identifier: MIT
// split_batch_norm on CUDA: what the bindings call. Needs no CUDA header.
#pragma once

#include "common/place.h"
#include "norm/cpu.h"

namespace mixfast::gpu::norm {

using splitnorm::Maps;

// As in norm/cpu.h, with pointers to the device's memory, for all types but double.
// `workspace`: float [workspace_numbers(maps)].
struct Forward {
  Maps maps;
  const void *x, *weight, *bias;
  void *running_mean, *running_var;
  const void* residual;
  double momentum, eps;
  bool relu;
  void *y, *means, *inverses, *workspace;
};

struct Backward {
  Maps maps;
  const void *dy, *x, *y, *weight, *means, *inverses;
  void *dx, *d_residual, *d_weight, *d_bias, *workspace;
};

int64_t workspace_numbers(const Maps& maps);

// Each returns an error's description, or null; launches are not waited for.
const char* forward(const Place& place, const Forward& call);
const char* backward(const Place& place, const Backward& call);

}  // namespace mixfast::gpu::norm
