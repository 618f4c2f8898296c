// SPDX-License-Identifier: MIT
// Where along one axis the pixels of a view come from.
#pragma once

#include <cstdint>

namespace mixfast {
namespace augment {

// Tap t of pixel i is place[t * stride + i] pixels from `start`, with its weight.
struct Axis {
  int64_t start, length, stride;
  int32_t* place;
  float* weight;
};

// The crop [start, start + length) of `in` pixels, to `out` pixels by 2 taps, or 4 for bicubic; `unit` multiplies all
// weights. Arrays of `stride` for each tap, of which all is written.
Axis make_axis(float start, float length, int64_t in, int64_t out, bool bicubic, bool flip, float unit, int64_t stride,
               int32_t* place, float* weight);

}  // namespace augment
}  // namespace mixfast
