// SPDX-License-Identifier: MIT
// masked_upsample_pool on CPU: the weights of one image, for the instruction set of the including file.
// Shapes    mask [H, W], box [4]; weights [2, h, w]: inside, outside
// Numerics  integers in double or, of byte masks, in float while below 2^24: exact; then one division and rounding
// Checked   tests/ops/test_masked_upsample_pool_weights.py; derivation in docs/maths.md
#pragma once

#include "common/bilinear.h"
#include "common/simd.h"
#include "pool/kernels.h"

namespace mixfast {
namespace {

// Sums of the axis' hats over [low, high), and what is missing to the whole sums: exact, both, as they are integers.
MIXFAST_INLINE void axis_weights(const Axis& axis, int64_t low, int64_t high, double* box, double* rest) {
  using Reals = vector_t<double>;
  const Reals from = fill(static_cast<double>(low)), to = fill(static_cast<double>(high));
  for (int64_t i = 0; i < axis.padded; i += kLanes<double>) {
    const Hat<Reals> hat{load(axis.rise + i),       load(axis.peak + i),        load(axis.fall + i),
                         load(axis.rise_slope + i), load(axis.rise_offset + i), load(axis.fall_slope + i),
                         load(axis.fall_offset + i)};
    const Reals sum = interval_sum(hat, from, to);
    store(box + i, sum);
    store(rest + i, load(axis.total + i) - sum);
  }
}

MIXFAST_INLINE void store_as(double* to, vector_t<double> value) { store(to, value); }
MIXFAST_INLINE void store_as(float* to, vector_t<double> value) {
  typedef float Floats __attribute__((vector_size(MIXFAST_VECTOR_BYTES / 2)));
  const Floats floats = __builtin_convertvector(value, Floats);
  __builtin_memcpy(to, &floats, sizeof(floats));
}

// inside = a (x) a', outside = rest (x) total' + a (x) rest': sums of positive terms, so nothing cancels.
template <class A>
void box_weights(const Axis& y, const Axis& x, const int64_t* box, void* weights, double* scratch) {
  double *box_y = scratch, *rest_y = box_y + y.padded, *box_x = rest_y + y.padded, *rest_x = box_x + x.padded;
  axis_weights(y, box[1], box[3], box_y, rest_y);
  axis_weights(x, box[0], box[2], box_x, rest_x);
  const double pixels = static_cast<double>(y.pixels) * static_cast<double>(x.pixels);
  const double area = static_cast<double>(box[3] - box[1]) * static_cast<double>(box[2] - box[0]);
  const double scale_inside = area > 0 ? 1 / (4 * pixels * area) : 0;
  const double scale_outside = area < pixels ? 1 / (4 * pixels * (pixels - area)) : 0;
  auto* inside = static_cast<A*>(weights);
  auto* outside = inside + y.cells * x.cells;
  constexpr int64_t kL = kLanes<double>;
  for (int64_t i = 0; i < y.cells; ++i, inside += x.cells, outside += x.cells) {
    const double in = box_y[i] * scale_inside, out_total = rest_y[i] * scale_outside, out = box_y[i] * scale_outside;
    for (int64_t j = 0; j < x.cells; j += kL) {
      if (j + kL > x.cells && x.cells >= kL) j = x.cells - kL;  // reaches back: the same values again
      const vector_t<double> a = load(box_x + j), rest = load(rest_x + j), total = load(x.total + j);
      if (x.cells >= kL) {
        store_as(inside + j, in * a);
        store_as(outside + j, out_total * total + out * rest);
      } else {
        for (int64_t l = 0; l < x.cells; ++l) {
          inside[l] = static_cast<A>(in * a[l]);
          outside[l] = static_cast<A>(out_total * total[l] + out * rest[l]);
        }
      }
    }
  }
}

// kVectors vectors of neighbouring columns, from `first` on.
template <int kVectors>
MIXFAST_INLINE void fold_bytes_strip(const uint8_t* first, int64_t width, int64_t rows, const float* lower_part,
                                     const float* upper_part, float* lower, float* upper) {
  using Floats = vector_t<float>;
  Floats low[kVectors] = {}, high[kVectors] = {};
  for (int64_t r = 0; r < rows; ++r) {
    const Words lower_bits = reinterpret<Words>(fill(lower_part[r])),
                upper_bits = reinterpret<Words>(fill(upper_part[r]));
    for (int v = 0; v < kVectors; ++v) {
      const Bytes bytes = load_bytes<Bytes>(first + r * width + v * kFloats);
      const Words set = reinterpret<Words>(widen_bytes(bytes) != 0);
      low[v] += reinterpret<Floats>(lower_bits & set);
      high[v] += reinterpret<Floats>(upper_bits & set);
    }
  }
  for (int v = 0; v < kVectors; ++v) {
    store(lower + v * kFloats, low[v]);
    store(upper + v * kFloats, high[v]);
  }
}

void fold_bytes(const void* mask, int64_t width, int64_t rows, const float* lower_part, const float* upper_part,
                float* lower, float* upper) {
  constexpr int kStrip = 4;
  const auto* m = static_cast<const uint8_t*>(mask);
  int64_t x = 0;
  for (; x + kStrip * kFloats <= width; x += kStrip * kFloats)
    fold_bytes_strip<kStrip>(m + x, width, rows, lower_part, upper_part, lower + x, upper + x);
  for (; x + kFloats <= width; x += kFloats)
    fold_bytes_strip<1>(m + x, width, rows, lower_part, upper_part, lower + x, upper + x);
  for (; x < width; ++x) {
    lower[x] = upper[x] = 0;
    for (int64_t r = 0; r < rows; ++r) {
      lower[x] += m[r * width + x] ? lower_part[r] : 0;
      upper[x] += m[r * width + x] ? upper_part[r] : 0;
    }
  }
}

// kFloats mask values as doubles, in two vectors.
struct Reals {
  vector_t<double> half[2];
};
MIXFAST_INLINE Reals as_reals(vector_t<float> value) {
#if defined(__AVX2__) && MIXFAST_VECTOR_BYTES == 32
  const __m256 all = reinterpret<__m256>(value);
  return {{reinterpret<vector_t<double>>(_mm256_cvtps_pd(_mm256_castps256_ps128(all))),
           reinterpret<vector_t<double>>(_mm256_cvtps_pd(_mm256_extractf128_ps(all, 1)))}};
#else
  typedef float Floats __attribute__((vector_size(MIXFAST_VECTOR_BYTES / 2)));
  Floats half[2];
  __builtin_memcpy(half, &value, sizeof(value));
  return {{__builtin_convertvector(half[0], vector_t<double>), __builtin_convertvector(half[1], vector_t<double>)}};
#endif
}
template <class T>
MIXFAST_INLINE Reals load_reals(const T* from) {
  return as_reals(load(from));
}
MIXFAST_INLINE Reals load_reals(const double* from) { return {{load(from), load(from + kLanes<double>)}}; }
MIXFAST_INLINE Reals load_reals(const uint8_t* from) {
  const Bytes bytes = load_bytes<Bytes>(from);
  return as_reals(__builtin_convertvector(widen_bytes(bytes) != 0, vector_t<float>) * -1.0f);
}

template <class T>
MIXFAST_INLINE Reals load_first_reals(const T* from, int64_t count) {
  T lanes[kFloats] = {};
  for (int64_t l = 0; l < count; ++l) lanes[l] = from[l];
  return load_reals(lanes);
}

// `count` neighbouring columns, kFloats or fewer.
template <class T>
MIXFAST_INLINE bool fold_strip(const T* first, int64_t count, int64_t width, int64_t rows, const double* lower_part,
                               const double* upper_part, double* const* to) {
  const vector_t<double> zero = fill(0.0), one = fill(1.0);
  typename LaneIndex<double>::type valid = zero == zero;
  Reals sums[4] = {};
  for (int64_t r = 0; r < rows; ++r) {
    const T* row = first + r * width;
    const Reals in = count == kFloats ? load_reals(row) : load_first_reals(row, count);
    const vector_t<double> low = fill(lower_part[r]), high = fill(upper_part[r]);
    for (int h = 0; h < 2; ++h) {
      const vector_t<double> m = in.half[h], rest = one - m;
      valid &= (m >= zero) & (m <= one);
      sums[0].half[h] += low * m;
      sums[1].half[h] += high * m;
      sums[2].half[h] += low * rest;
      sums[3].half[h] += high * rest;
    }
  }
  for (int s = 0; s < 4; ++s) {
    if (count == kFloats) {
      for (int h = 0; h < 2; ++h) store(to[s] + h * kLanes<double>, sums[s].half[h]);
    } else {
      for (int64_t l = 0; l < count; ++l) to[s][l] = sums[s].half[l / kLanes<double>][l % kLanes<double>];
    }
  }
  bool all = true;
  for (int l = 0; l < kLanes<double>; ++l) all = all && valid[l];
  return all;
}

template <class T>
bool fold(const void* mask, int64_t width, int64_t rows, const double* lower_part, const double* upper_part,
          double* lower, double* upper, double* lower_rest, double* upper_rest) {
  const auto* m = static_cast<const T*>(mask);
  bool valid = true;
  for (int64_t x = 0; x < width; x += kFloats) {
    double* const to[4] = {lower + x, upper + x, lower_rest + x, upper_rest + x};
    const int64_t count = width - x < kFloats ? width - x : kFloats;
    valid &= fold_strip(m + x, count, width, rows, lower_part, upper_part, to);
  }
  return valid;
}

#define MIXFAST_WEIGHT_KERNELS                                             \
  {                                                                        \
    box_weights<float>, box_weights<double>, fold_bytes, {                 \
      fold<float>, fold<double>, fold<Half>, fold<BFloat16>, fold<uint8_t> \
    }                                                                      \
  }

}  // namespace
}  // namespace mixfast
