// SPDX-License-Identifier: MIT
// masked_upsample_pool on CUDA: what the bindings call. Needs no CUDA header.
#pragma once

#include "masked_upsample_pool/cpu.h"

namespace mixfast::gpu {

// Where a call runs; the current device is restored afterwards.
struct Place {
  int device;
  void* stream;
};

// As in cpu.h, with pointers to the device's memory. `sums`: float64 [images, 2, h, w] to work in, for masks only.
// Boxes are clamped to the map. Each returns an error's description, or null; launches are not waited for.
const char* region_weights(const Place& place, const Regions& regions, int64_t h, int64_t w, bool wide, double* sums,
                           void* weights);
const char* pool_regions(const Place& place, const Maps& maps, const void* features, const Regions& regions,
                         double* sums, void* weights, void* inside, void* outside);
const char* pool_weights(const Place& place, const Maps& maps, const void* features, int64_t images,
                         const void* weights, void* inside, void* outside);
const char* spread_weights(const Place& place, const Maps& maps, const void* grad_inside, const void* grad_outside,
                           int64_t images, const void* weights, void* grad_features);

}  // namespace mixfast::gpu
