// SPDX-License-Identifier: MIT
// masked_upsample_pool on CPU: what the bindings call.
#pragma once

#include <cstdint>

#include "pool/kernels.h"

namespace mixfast {

// Maps [batch, channels, h, w], or in memory [batch, h, w, channels] if channels_last.
struct Maps {
  int64_t batch, channels, h, w;
  Dtype dtype;
  bool channels_last;
};

// Boxes int64 [images, 4] as (x0, y0, x1, y1), or masks [images, height, width] of `mask_dtype`.
struct Regions {
  const void* data;
  int64_t images, height, width;
  bool boxes;
  Dtype mask_dtype;
};

// Weights [images, 2, h, w], double if `wide`, else float. Those of one image serve all images of a batch.
// Functions that read regions return whether all are valid; if one is not, their results mean nothing.
bool region_weights(const Regions& regions, int64_t h, int64_t w, bool wide, void* weights, int threads);
bool pool_regions(const Maps& maps, const void* features, const Regions& regions, void* weights, void* inside,
                  void* outside, int threads);
void pool_weights(const Maps& maps, const void* features, int64_t images, const void* weights, void* inside,
                  void* outside, int threads);
void spread_weights(const Maps& maps, const void* grad_inside, const void* grad_outside, int64_t images,
                    const void* weights, void* grad_features, int threads);

}  // namespace mixfast
