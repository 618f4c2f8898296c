// SPDX-License-Identifier: MIT
// Compiled without fused multiply-add: sampling points are rounded as in PyTorch, where the 100th pixel's is only right
// to 1e-5.
#include "views/axis.h"

#include <algorithm>
#include <cmath>

namespace mixfast {
namespace augment {
namespace {

// The whole number in [least, most] that a parameter stands for, also if it is no number.
int64_t whole(float value, int64_t least, int64_t most) {
  if (!(value > static_cast<float>(least))) return least;
  return static_cast<int64_t>(std::min(value, static_cast<float>(most)));
}

// Keys' kernel with A = -0.5, as in Pillow, of the pixels at -1, 0, 1 and 2 for a point at t in [0, 1).
// Pixels that are not in [0, length), of which the first is `begin`, get none, and the others sum to one.
void cubic(float t, int64_t begin, int64_t length, float* weights) {
  constexpr float a = -0.5f;
  const auto near = [](float x) { return ((a + 2) * x - (a + 3)) * x * x + 1; };
  const auto far = [](float x) { return ((a * x - 5 * a) * x + 8 * a) * x - 4 * a; };
  weights[0] = far(t + 1);
  weights[1] = near(t);
  weights[2] = near(1 - t);
  weights[3] = far(2 - t);
  float sum = 0;
  for (int tap = 0; tap < 4; ++tap) {
    if (begin + tap < 0 || begin + tap >= length) weights[tap] = 0;
    sum += weights[tap];
  }
  for (int tap = 0; tap < 4; ++tap) weights[tap] /= sum;
}

}  // namespace

Axis make_axis(float start, float length, int64_t in, int64_t out, bool bicubic, bool flip, float unit, int64_t stride,
               int32_t* place, float* weight) {
  Axis axis = {whole(start, 0, in - 1), 0, stride, place, weight};
  axis.length = whole(length, 1, in - axis.start);
  const float step = static_cast<float>(axis.length) / static_cast<float>(out);
  const int taps = bicubic ? 4 : 2, first = bicubic ? -1 : 0;
  for (int64_t i = 0; i < out; ++i) {
    float source = (static_cast<float>(i) + 0.5f) * step - 0.5f;
    if (!bicubic) source = std::max(source, 0.0f);
    const float base = std::floor(source), fraction = source - base;
    float each[4] = {1 - fraction, fraction, 0, 0};
    const int64_t to = flip ? out - 1 - i : i, begin = static_cast<int64_t>(base) + first;
    if (bicubic) cubic(fraction, begin, axis.length, each);
    for (int tap = 0; tap < taps; ++tap) {
      place[tap * stride + to] = static_cast<int32_t>(std::min(std::max<int64_t>(begin + tap, 0), axis.length - 1));
      weight[tap * stride + to] = each[tap] * unit;
    }
  }
  for (int tap = 0; tap < taps; ++tap) {
    std::fill_n(place + tap * stride + out, stride - out, 0);
    std::fill_n(weight + tap * stride + out, stride - out, 0.0f);
  }
  return axis;
}

}  // namespace augment
}  // namespace mixfast
