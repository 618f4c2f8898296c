// SPDX-License-Identifier: MIT
// The unit of work of split batch norm on CPU: a piece of one group's maps, small enough for the level-1 cache.
#pragma once

#include <cstdint>

#include "common/matrix.h"

namespace mixfast {
namespace splitnorm {

constexpr int64_t kTile = 64;     // statistics of a piece, at most
constexpr int64_t kPiece = 4096;  // elements of a piece, about

// channels_last: `width` neighbouring elements of each row have statistics of their own, summed over rows.
// Otherwise a row is `width` elements of one channel, and there is one of each statistic.
struct Piece {
  int64_t start;             // elements from the first of the maps
  int64_t runs, run_stride;  // samples of the group
  int64_t rows, row_stride;  // in each run
  int64_t width;
};

// The gradient that arrives, and the result whose zeros stop it: null without a relu.
struct Upstream {
  const void *dy, *y;
};

// Arrays of Real have rows of kTile. The order of all sums is that of the piece.
template <class Real>
struct Kernels {
  // moments[0]: mean m of the piece, as rounded; [1]: sum of x - m; [2]: sum of (x - m)^2
  void (*moments)(const void* x, const Piece& piece, Real* moments);
  // y = relu((x - factors[0]) factors[1] + factors[2] + residual), rounded to the type of maps after each of three
  // steps: the norm, the addition (residual may be null), relu (where it is wanted)
  void (*normalise)(const void* x, const void* residual, void* y, const Piece& piece, const Real* factors, bool relu);
  // With g = dy but for zeros where y <= 0 (y may be null: no zeros): sums[0] = sum of g; sums[1] = sum of g (x -
  // means). g itself goes to `masked`, unless that is null
  void (*products)(const Upstream& upstream, const void* x, void* masked, const Piece& piece, const Real* means,
                   Real* sums);
  // dx = (x - factors[0]) factors[1] + (g factors[2] + factors[3])
  void (*gradient)(const Upstream& upstream, const void* x, void* dx, const Piece& piece, const Real* factors);
};

// One per instruction set, each compiled with its own flags.
#define MIXFAST_KERNELS                                        \
  Kernels<float> float_kernels(Type type, bool channels_last); \
  Kernels<double> double_kernels(bool channels_last)
namespace baseline {
MIXFAST_KERNELS;
}  // namespace baseline
namespace avx2 {
MIXFAST_KERNELS;
}  // namespace avx2
namespace avx512 {
MIXFAST_KERNELS;
}  // namespace avx512
#undef MIXFAST_KERNELS

}  // namespace splitnorm
}  // namespace mixfast
