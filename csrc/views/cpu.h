// SPDX-License-Identifier: MIT
// augment_views, draw_views and mix_views on CPU. No Python, no torch.
#pragma once

#include <cstdint>

#include "common/instruction_sets.h"
#include "views/view.h"

namespace mixfast {
namespace augment {

struct Call {
  Options options;
  const uint8_t* images;    // [count][3][image_height][image_width]
  int64_t count;            // N
  const int64_t* index;     // [batch], rows of images; null: the first `batch` rows
  const float* parameters;  // [views][batch][kColumns]
  int64_t views, batch;
  void* out;  // [views][batch], each a view
};

// -1, or, with nothing written, the first place in `index` that is no row of images.
int64_t run(const Call& call, int threads, Isa isa);

// A recipe, in the order of mixfast/ops/views/_layout.py.
struct Law {
  double area_low, area_range, ratio_low, ratio_range;
  double central[4];  // top, left, height, width
  double flip, jitter, grey, blur, solarise;
  double sigma_low, sigma_range;
  double strength[4][2];  // (low, range) of brightness, contrast, saturation, hue
};
static_assert(sizeof(Law) == 23 * sizeof(double), "a law is its numbers in a row");

// Parameters [views][batch][kColumns]; state (key, next draw) moves on by one.
void draw(int64_t* state, int64_t batch, int64_t height, int64_t width, const Law* laws, int64_t views,
          float* parameters);

// Images [batch][channels][height][width], or with channels_last the channels last.
struct Mixture {
  const void *base, *donor;
  const int64_t* boxes;  // [batch][4], x0 y0 x1 y1: where the donor alone shows
  const float* share;    // [batch], of the base elsewhere
  int64_t batch, channels, height, width;
  Type type;
  bool channels_last;
  void* out;
};

void mix(const Mixture& call, int threads);

}  // namespace augment
}  // namespace mixfast
