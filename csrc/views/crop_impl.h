// SPDX-License-Identifier: MIT
// Crop and resize, rows first, then columns; included by view_impl.h. Internal linkage, as in simd.h.
#pragma once

#include <algorithm>
#include <cstdint>

#include "common/simd.h"
#include "views/axis.h"
#include "views/view.h"

namespace mixfast {
namespace augment {
namespace {

using Float = vector_t<float>;

MIXFAST_INLINE Float smaller(Float a, Float b) { return a < b ? a : b; }
MIXFAST_INLINE Float larger(Float a, Float b) { return a > b ? a : b; }
MIXFAST_INLINE Float clamped(Float value) { return smaller(larger(value, fill(0.0f)), fill(1.0f)); }

MIXFAST_INLINE Float load_pixels(const uint8_t* from) {
  return __builtin_convertvector(widen_bytes(load_bytes<Bytes>(from)), Float);
}
MIXFAST_INLINE Float load_pixels(const float* from) { return load(from); }

// Lanes of `line`, which is longer than two vectors; `narrow`: all places are in these two.
template <bool narrow>
MIXFAST_INLINE Float look_up(const float* line, const int32_t* place) {
#if defined(__AVX512F__)
  const __m512i lanes = load_bytes<__m512i>(place);
  if (narrow) {
    return reinterpret<Float>(
        _mm512_permutex2var_ps(load_bytes<__m512>(line), lanes, load_bytes<__m512>(line + kFloats)));
  }
  return reinterpret<Float>(_mm512_i32gather_ps(lanes, line, 4));
#elif defined(__AVX2__)
  return reinterpret<Float>(_mm256_i32gather_ps(line, load_bytes<__m256i>(place), 4));
#else
  Float found = {};
  for (int l = 0; l < kFloats; ++l) found[l] = line[place[l]];
  return found;
#endif
}

// line[x] = sum of the taps' rows, for the columns of the crop.
template <int taps, class S>
MIXFAST_INLINE void blend_rows(const S* const* rows, const float* weights, const Axis& columns, int64_t width,
                               float* line) {
  const int64_t end = columns.start + columns.length;
  if (width < kFloats) {
    for (int64_t x = columns.start; x < end; ++x) {
      float sum = 0;
      for (int tap = 0; tap < taps; ++tap) sum += weights[tap] * static_cast<float>(rows[tap][x]);
      line[x] = sum;
    }
    return;
  }
  for (int64_t x = columns.start; x < end; x += kFloats) {
    const int64_t at = std::min(x, width - kFloats);  // no byte beyond the row is read
    Float sum = fill(weights[0]) * load_pixels(rows[0] + at);
    for (int tap = 1; tap < taps; ++tap) sum += fill(weights[tap]) * load_pixels(rows[tap] + at);
    store(line + at, sum);
  }
}

template <int taps, bool narrow>
MIXFAST_INLINE void blend_columns(const float* line, const Axis& columns, int64_t width, float* out) {
  for (int64_t x = 0; x < width; x += kFloats) {
    Float sum = {};
    for (int tap = 0; tap < taps; ++tap) {
      const int64_t at = tap * columns.stride + x;
      sum += load(columns.weight + at) * look_up<narrow>(line, columns.place + at);
    }
    store(out + x, taps == 4 ? clamped(sum) : sum);
  }
}

// Rows [first, last) of the view, of an image whose channels are `stride` apart; columns beyond the view's width are
// written and mean nothing.
template <int taps, class S>
void crop_rows(const Options& options, const S* image, int64_t stride, const Axis& rows, const Axis& columns,
               int64_t first, int64_t last, float* line, float* planes) {
  for (int channel = 0; channel < 3; ++channel) {
    const S* const plane = image + channel * stride + rows.start * options.image_width;
    for (int64_t y = first; y < last; ++y) {
      const S* each[taps];
      float weights[taps];
      for (int tap = 0; tap < taps; ++tap) {
        each[tap] = plane + rows.place[tap * rows.stride + y] * options.image_width;
        weights[tap] = rows.weight[tap * rows.stride + y];
      }
      blend_rows<taps>(each, weights, columns, options.image_width, line);
      float* const out = planes + channel * padded(options.pixels()) + y * options.width;
      if (columns.length <= 2 * kFloats) {
        blend_columns<taps, true>(line + columns.start, columns, options.width, out);
      } else {
        blend_columns<taps, false>(line + columns.start, columns, options.width, out);
      }
    }
  }
}

}  // namespace
}  // namespace augment
}  // namespace mixfast
