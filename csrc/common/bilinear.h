// SPDX-License-Identifier: MIT
// The rule of bilinear resizing (align_corners=False) along one axis, and its sums over an interval of pixels.
//
// An axis of n cells is resized to N pixels. Pixel j samples at s = (2j + 1) n / 2N - 1/2; with t = 2N s all is
// integer:
//     t = (2j + 1) n - N        cell = floor(t / 2N)        weight of cell + 1 = (t mod 2N) / 2N, of cell the rest
// Before the first cell's centre (t < 0) and after the last one's, the border cell has all the weight.
// Seen from cell i, the pixels' weights form a hat: a rising flank, a falling flank, each an arithmetic series, so the
// sum over any interval of pixels needs no loop. Sums are kept times 2N: integers below 2^53, hence exact as doubles
// and subtracted without loss, for n, N up to 2^24.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define MIXFAST_HD __host__ __device__ __forceinline__
#else
#define MIXFAST_HD static inline
#endif

namespace mixfast {

// One pixel: 2N - upper of its 2N parts come from `cell`, `upper` of them from cell + 1.
struct Taps {
  int64_t cell;
  int64_t upper;
};

MIXFAST_HD Taps taps_of_pixel(int64_t pixel, int64_t cells, int64_t pixels) {
  const int64_t t = (2 * pixel + 1) * cells - pixels;
  if (t <= 0) return {0, 0};
  const int64_t cell = t / (2 * pixels);
  if (cell >= cells - 1) return {cells - 1, 0};
  return {cell, t - cell * 2 * pixels};
}

// One cell: pixels [rise, peak) weigh rise_slope (2j + 1) + rise_offset, pixels [peak, fall) likewise.
template <class Real>
struct Hat {
  Real rise, peak, fall;
  Real rise_slope, rise_offset;
  Real fall_slope, fall_offset;
};

// The first pixel with t >= (odd - 1) N, that is (2j + 1) n >= odd N.
MIXFAST_HD double first_pixel_at(int64_t odd, int64_t cells, int64_t pixels) {
  const int64_t distance = pixels * odd - cells;
  return distance > 0 ? static_cast<double>((distance + 2 * cells - 1) / (2 * cells)) : 0.0;
}

MIXFAST_HD Hat<double> hat_of_cell(int64_t cell, int64_t cells, int64_t pixels) {
  const bool first = cell == 0, last = cell == cells - 1;
  const double n = static_cast<double>(cells), whole = 2.0 * static_cast<double>(pixels);
  Hat<double> hat;
  hat.rise = first ? 0.0 : first_pixel_at(2 * cell - 1, cells, pixels);
  hat.peak = first_pixel_at(2 * cell + 1, cells, pixels);
  hat.fall = last ? static_cast<double>(pixels) : first_pixel_at(2 * cell + 3, cells, pixels);
  hat.rise_slope = first ? 0.0 : n;
  hat.rise_offset = first ? whole : -static_cast<double>(pixels * (2 * cell - 1));
  hat.fall_slope = last ? 0.0 : -n;
  hat.fall_offset = last ? whole : static_cast<double>(pixels * (2 * cell + 3));
  return hat;
}

// sum of (slope (2j + 1) + offset) over pixels j of [from, to) and [low, high): (2j + 1) sums to b^2 - a^2 over [a, b).
// Real: double, or a vector of doubles for as many cells.
template <class Real>
MIXFAST_HD Real flank_sum(Real from, Real to, Real slope, Real offset, Real low, Real high) {
  const Real a = from > low ? from : low;
  const Real b = to < high ? to : high;
  const Real count = b > a ? b - a : b - b;
  return count * (slope * (a + b) + offset);
}

// 2N times the weight that pixels [low, high) give to the cell of this hat.
template <class Real>
MIXFAST_HD Real interval_sum(const Hat<Real>& hat, Real low, Real high) {
  return flank_sum(hat.rise, hat.peak, hat.rise_slope, hat.rise_offset, low, high) +
         flank_sum(hat.peak, hat.fall, hat.fall_slope, hat.fall_offset, low, high);
}

}  // namespace mixfast
