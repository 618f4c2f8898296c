// SPDX-License-Identifier: MIT
// One view of one image on CPU: the unit of work of augment_views, compiled once for each instruction set.
#pragma once

#include <cstdint>

#include "common/matrix.h"

namespace mixfast {
namespace augment {

// The columns of a view's parameters, as mixfast/ops/views/_layout.py lists them.
enum Column {
  kTop,
  kLeft,
  kHeight,
  kWidth,
  kFlip,
  kBrightness,
  kContrast,
  kSaturation,
  kHue,
  kOrder,
  kHuePlace = kOrder + 3,
  kGrey,
  kSigma,
  kSolarise,
  kColumns
};

// What all views of a call share.
struct Options {
  int64_t image_height, image_width, height, width;  // of images and views
  float scale[3], offset[3];                         // of channels: a view is x * scale + offset
  bool bicubic, colour_first, grey_first;
  int64_t reach;  // of the blur, less than height and width
  Type type;      // of views: float, half or bfloat16
  bool channels_last;

  int64_t image_pixels() const { return image_height * image_width; }
  int64_t pixels() const { return height * width; }
};

constexpr int64_t kSlack = 64;  // floats beyond an array that whole vectors may touch

// Memory that a view needs, carved from one allocation.
struct Scratch {
  float *planes, *image;  // [3][padded pixels], the view and, if colours come first, the image
  float *line, *plane;    // one row of the image or padded row of the view; one channel of the view
  float* kernel;          // [reach + 1]
  float* weights[2];      // [taps][size] of rows and columns
  int32_t* places[2];
};

static inline int64_t padded(int64_t count) { return count + kSlack; }

// Points `scratch` into `memory` if that is given; how many floats it has to hold.
static inline int64_t carve(const Options& options, float* memory, Scratch* scratch) {
  int64_t used = 0;
  const auto take = [&](int64_t count) {
    float* const here = memory == nullptr ? nullptr : memory + used;
    used += padded(count);
    return here;
  };
  const int64_t longest = options.image_width > options.width ? options.image_width : options.width;
  scratch->planes = take(3 * padded(options.pixels()));
  scratch->image = take(options.colour_first ? 3 * padded(options.image_pixels()) : 0);
  scratch->line = take(longest + 2 * options.reach);
  scratch->plane = take(options.reach > 0 ? options.pixels() : 0);
  scratch->kernel = take(options.reach + 1);
  for (int axis = 0; axis < 2; ++axis) {
    const int64_t size = 4 * padded(axis == 0 ? options.height : options.width);
    scratch->weights[axis] = take(size);
    scratch->places[axis] = reinterpret_cast<int32_t*>(take(size));
  }
  return used;
}

// image [3][image_height][image_width] and how [kColumns] to out, 3 * pixels numbers.
#define MIXFAST_VIEW \
  void view(const Options& options, const uint8_t* image, const float* how, const Scratch& scratch, void* out)
namespace baseline {
MIXFAST_VIEW;
}  // namespace baseline
namespace avx2 {
MIXFAST_VIEW;
}  // namespace avx2
namespace avx512 {
MIXFAST_VIEW;
}  // namespace avx512
#undef MIXFAST_VIEW

}  // namespace augment
}  // namespace mixfast
