// SPDX-License-Identifier: MIT
// Colour steps on vectors of pixels; included by view_impl.h. Internal linkage, as in simd.h.
#pragma once

#include <cstdint>

#include "views/crop_impl.h"

namespace mixfast {
namespace augment {
namespace {

// torchvision's luma weights (ITU-R 601)
constexpr float kRed = 0.2989f, kGreen = 0.587f, kBlue = 0.114f;

// x = clamp(factor x + to_grey grey(x) + offset) of the three channels: brightness, contrast, saturation and grey are
// all of this kind. Or a rotation of the hue by `factor` turns.
struct Step {
  float factor, to_grey, offset;
  bool hue;
};

// The steps of a view in their order; those from `contrast` on wait for the mean grey of what comes before.
struct Steps {
  Step each[5];
  int count, contrast;  // contrast == count: there is none
};

inline Steps make_steps(const float* how, bool grey_first) {
  Steps steps = {{}, 0, -1};
  const auto add = [&](Step step) { steps.each[steps.count++] = step; };
  const bool grey = how[kGrey] != 0;
  if (grey && grey_first) add({0, 1, 0, false});
  const int hue_place = static_cast<int>(how[kHuePlace]);
  for (int place = 0; place <= 3; ++place) {
    if (place == hue_place && how[kHue] != 0) add({how[kHue], 0, 0, true});
    if (place == 3) break;
    const int kind = static_cast<int>(how[kOrder + place]);
    const float factor = kind == 0 ? how[kBrightness] : kind == 1 ? how[kContrast] : how[kSaturation];
    if (factor == 1) continue;
    if (kind == 1) steps.contrast = steps.count;
    add({factor, kind == 2 ? 1 - factor : 0, 0, false});
  }
  if (grey && !grey_first) add({0, 1, 0, false});
  if (steps.contrast < 0) steps.contrast = steps.count;
  return steps;
}

struct Pixels {
  Float red, green, blue;
};

MIXFAST_INLINE Float grey_of(const Pixels& p) {
  return fill(kRed) * p.red + fill(kGreen) * p.green + fill(kBlue) * p.blue;
}

// The hexagonal model: a channel whose own hue is m sixths of a turn has the value min + chroma clamp(2 - |h - m|, 0,
// 1) for the hue h in sixths, the distance taken round the circle. See colour.py of the operation.
MIXFAST_INLINE Pixels rotated(const Pixels& p, float turns) {
  const Float high = larger(larger(p.red, p.green), p.blue), low = smaller(smaller(p.red, p.green), p.blue);
  const Float chroma = high - low;
  const Float size = ((p.green - low) + (p.blue - low) + (high - p.red)) / larger(chroma * 6.0f, fill(1e-12f));
  const Words sign = reinterpret<Words>(p.green - p.blue) & 0x80000000u;
  const Float hue = reinterpret<Float>(reinterpret<Words>(size) | sign) + turns;
  const auto channel = [&](float own) {  // plus 1.5 less its own hue: above zero, so that truncation is floor
    const Float from = hue + own;
    const Float apart = from - __builtin_convertvector(__builtin_convertvector(from, Ints), Float) - 0.5f;
    const Float distance = reinterpret<Float>(reinterpret<Words>(apart) & 0x7fffffffu);
    return clamped(2.0f - 6.0f * distance) * chroma + low;
  };
  return {channel(1.5f), channel(1.5f - 1.0f / 3), channel(1.5f + 1.0f / 3)};
}

MIXFAST_INLINE Pixels applied(Pixels p, const Step* steps, int count) {
  for (int i = 0; i < count; ++i) {
    const Step& step = steps[i];
    if (step.hue) {
      p = rotated(p, step.factor);
      continue;
    }
    const Float common = fill(step.to_grey) * grey_of(p) + step.offset, factor = fill(step.factor);
    p = {clamped(factor * p.red + common), clamped(factor * p.green + common), clamped(factor * p.blue + common)};
  }
  return p;
}

MIXFAST_INLINE Pixels load_three(const float* planes, int64_t stride) {
  return {load(planes), load(planes + stride), load(planes + 2 * stride)};
}
MIXFAST_INLINE void store_three(float* planes, int64_t stride, const Pixels& p) {
  store(planes, p.red);
  store(planes + stride, p.green);
  store(planes + 2 * stride, p.blue);
}

// Applies steps to `count` pixels of three planes in place, and to what follows them up to a whole vector.
inline void colour(float* planes, int64_t stride, int64_t count, const Step* steps, int number) {
  if (number == 0) return;
  for (int64_t i = 0; i < count; i += kFloats) {
    store_three(planes + i, stride, applied(load_three(planes + i, stride), steps, number));
  }
}

// The sum of the greys of `count` pixels.
inline double grey_sum(const float* planes, int64_t stride, int64_t count) {
  Float sum = {};
  int64_t i = 0;
  for (; i + kFloats <= count; i += kFloats) sum += grey_of(load_three(planes + i, stride));
  double total = 0;
  for (int l = 0; l < kFloats; ++l) total += static_cast<double>(sum[l]);
  if (i < count) {
    const Float rest = grey_of(load_three(planes + i, stride));
    for (int l = 0; l < count - i; ++l) total += static_cast<double>(rest[l]);
  }
  return total;
}

}  // namespace
}  // namespace augment
}  // namespace mixfast
