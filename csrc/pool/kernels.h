// SPDX-License-Identifier: MIT
// masked_upsample_pool on CPU: the loops over one image, as a table of functions for each instruction set.
#pragma once

#include <cstdint>

namespace mixfast {

// Types of feature maps and of masks. A byte is a bool, or a uint8 that counts as one unless it is zero.
enum Dtype : int { kFloat32, kFloat64, kFloat16, kBFloat16, kFeatureDtypes, kByte = kFeatureDtypes, kMaskDtypes };

// One axis: the hats of its cells (bilinear.h), an array for each member, and their whole sums. The arrays hold
// `padded` numbers, a multiple of kAxisPadding; those beyond `cells` make sums of zero.
constexpr int64_t kAxisPadding = 8;
struct Axis {
  int64_t cells, pixels, padded;
  const double *rise, *peak, *fall, *rise_slope, *rise_offset, *fall_slope, *fall_offset, *total;
};

// Weights are float, or double if the maps are. In `_last` functions (channels last) channels are neighbours and
// positions `stride` elements apart; in the others positions are neighbours and channels `positions` elements apart.
struct PoolKernels {
  // Sums of `channels` maps, weighted by `inside` and by `outside`.
  void (*pool)(const void* maps, int64_t positions, int64_t channels, const void* inside, const void* outside,
               void* sum_inside, void* sum_outside);
  void (*pool_last)(const void* maps, int64_t positions, int64_t channels, int64_t stride, const void* inside,
                    const void* outside, void* sum_inside, void* sum_outside);
  // maps[c, p] = grad_inside[c] inside[p] + grad_outside[c] outside[p]
  void (*spread)(const void* grad_inside, const void* grad_outside, int64_t positions, int64_t channels,
                 const void* inside, const void* outside, void* maps);
  void (*spread_last)(const void* grad_inside, const void* grad_outside, int64_t positions, int64_t channels,
                      int64_t stride, const void* inside, const void* outside, void* maps);
};

struct WeightKernels {
  // Weights [2, h, w] of a box (x0, y0, x1, y1). scratch: 2 (y.padded + x.padded) doubles.
  void (*box_weights_float)(const Axis& y, const Axis& x, const int64_t* box, void* weights, double* scratch);
  void (*box_weights_double)(const Axis& y, const Axis& x, const int64_t* box, void* weights, double* scratch);
  // Folds mask rows that share their pair of cells: lower[x] = sum_r lower_part[r] m[r, x], upper likewise. The parts
  // are integers, so in float a byte mask's sums are exact below 2^24.
  void (*fold_bytes)(const void* mask, int64_t width, int64_t rows, const float* lower_part, const float* upper_part,
                     float* lower, float* upper);
  // The same in double, and for 1 - m besides. False if a value lies outside [0, 1].
  bool (*fold[kMaskDtypes])(const void* mask, int64_t width, int64_t rows, const double* lower_part,
                            const double* upper_part, double* lower, double* upper, double* lower_rest,
                            double* upper_rest);
};

extern const PoolKernels kBaselinePool[kFeatureDtypes];
extern const WeightKernels kBaselineWeights;
#if defined(__x86_64__)
extern const PoolKernels kAvx2Pool[kFeatureDtypes];
extern const WeightKernels kAvx2Weights;
extern const PoolKernels kAvx512Streams[kFeatureDtypes];  // without `pool`
#endif

}  // namespace mixfast
