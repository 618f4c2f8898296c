// SPDX-License-Identifier: MIT
// masked_upsample_pool on CUDA: what the bindings call. Needs no CUDA header.
#pragma once

#include "common/place.h"
#include "pool/cpu.h"

namespace mixfast::gpu {

// As in cpu.h, with pointers to the device's memory. `sums`: [images, 2, 2, h, w + 1] of the dtype of the
// weights to work in, for masks only.
// Boxes are clamped to the map. Each returns an error's description, or null; launches are not waited for.
const char* region_weights(const Place& place, const Regions& regions, int64_t h, int64_t w, bool wide, void* sums,
                           void* weights);
const char* pool_regions(const Place& place, const Maps& maps, const void* features, const Regions& regions, void* sums,
                         void* weights, void* inside, void* outside);
const char* pool_weights(const Place& place, const Maps& maps, const void* features, int64_t images,
                         const void* weights, void* inside, void* outside);
const char* spread_weights(const Place& place, const Maps& maps, const void* grad_inside, const void* grad_outside,
                           int64_t images, const void* weights, void* grad_features);

}  // namespace mixfast::gpu
