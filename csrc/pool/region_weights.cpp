// SPDX-License-Identifier: MIT
// masked_upsample_pool on CPU: the weights of an image from its box, in closed form, or from its mask, by the adjoint.
// Shapes    box [4]; mask [H, W]; weights [2, h, w]
// Numerics  a mask's rows are folded first (vectors along x), then h rows along x; in integers where the mask is of
//           bytes, so that what is missing to the whole, the outside, is exact too; other masks fold 1 - m besides
// Checked   tests/ops/test_masked_upsample_pool_weights.py; derivation in docs/maths.md
#include "pool/region_weights.h"

#include <algorithm>

#include "common/bilinear.h"

namespace mixfast {
namespace {

constexpr int64_t kBytesPerValue[kMaskDtypes] = {4, 8, 2, 2, 1};

// Folds kRows rows of `values` [kRows, W] along x, into `sums` [kRows, w]. Several rows at once, since one row's sums
// would wait for each other.
template <int kRows>
void fold_rows(const double* values, int64_t w, const PixelRuns& columns, double* sums) {
  const int64_t width = static_cast<int64_t>(columns.lower_part.size());
  double carried[kRows] = {};  // what the columns of the run before gave to their upper cell, this one
  for (int64_t j = 0; j < w; ++j) {
    double low[kRows], high[kRows] = {};
    for (int r = 0; r < kRows; ++r) low[r] = carried[r];
    for (int64_t x = columns.start[j]; x < columns.start[j + 1]; ++x) {
      const double lower_part = columns.lower_part[x], upper_part = columns.upper_part[x];
      for (int r = 0; r < kRows; ++r) {
        low[r] += lower_part * values[r * width + x];
        high[r] += upper_part * values[r * width + x];
      }
    }
    for (int r = 0; r < kRows; ++r) {
      sums[r * w + j] = low[r];
      carried[r] = high[r];
    }
  }
}

// Folds the row sums [h, W] along x, into `sums` [h, w]. Row i has what its pixels gave to their lower cell, and those
// of row i - 1 to their upper one. values: [h, W] to work in.
template <class A>
void fold_columns(const A* lower, const A* upper, int64_t h, int64_t w, const PixelRuns& columns, double* values,
                  double* sums) {
  const int64_t width = static_cast<int64_t>(columns.lower_part.size());
  for (int64_t x = 0; x < width; ++x) values[x] = lower[x];
  for (int64_t x = 0; x < (h - 1) * width; ++x)
    values[width + x] = static_cast<double>(lower[width + x]) + static_cast<double>(upper[x]);
  int64_t i = 0;
  for (; i + 4 <= h; i += 4) fold_rows<4>(values + i * width, w, columns, sums + i * w);
  for (; i < h; ++i) fold_rows<1>(values + i * width, w, columns, sums + i * w);
}

template <class A>
void normalise_as(const double* sums, int64_t cells, A* weights) {
  for (int side = 0; side < 2; ++side, sums += cells, weights += cells) {
    double whole = 0;
    for (int64_t i = 0; i < cells; ++i) whole += sums[i];
    const double scale = whole > 0 ? 1 / whole : 0;
    for (int64_t i = 0; i < cells; ++i) weights[i] = static_cast<A>(sums[i] * scale);
  }
}

}  // namespace

PixelRuns::PixelRuns(int64_t cells, int64_t pixels) : start(cells + 1, pixels), lower_part(pixels), upper_part(pixels) {
  int64_t next = 0;
  for (int64_t pixel = 0; pixel < pixels; ++pixel) {
    const Taps taps = taps_of_pixel(pixel, cells, pixels);
    for (; next <= taps.cell; ++next) start[next] = pixel;
    lower_part[pixel] = static_cast<double>(2 * pixels - taps.upper);
    upper_part[pixel] = static_cast<double>(taps.upper);
  }
}

AxisTable::AxisTable(int64_t cells, int64_t pixels) {
  const int64_t padded = (cells + kAxisPadding - 1) / kAxisPadding * kAxisPadding;
  numbers.assign(8 * padded, 0.0);
  double* row[8];
  for (int k = 0; k < 8; ++k) row[k] = numbers.data() + k * padded;
  for (int64_t i = 0; i < cells; ++i) {
    const Hat<double> hat = hat_of_cell(i, cells, pixels);
    row[0][i] = hat.rise;
    row[1][i] = hat.peak;
    row[2][i] = hat.fall;
    row[3][i] = hat.rise_slope;
    row[4][i] = hat.rise_offset;
    row[5][i] = hat.fall_slope;
    row[6][i] = hat.fall_offset;
    row[7][i] = interval_sum(hat, 0.0, static_cast<double>(pixels));
  }
  axis = {cells, pixels, padded, row[0], row[1], row[2], row[3], row[4], row[5], row[6], row[7]};
}

WeightMaker::WeightMaker(const WeightKernels& kernels, const Regions& regions, int64_t h, int64_t w, bool wide)
    : kernels_(kernels),
      regions_(regions),
      h_(h),
      w_(w),
      wide_(wide),
      y_(h, regions.height),
      x_(w, regions.width),
      rows_(h, regions.boxes ? 0 : regions.height),
      columns_(w, regions.boxes ? 0 : regions.width) {
  if (regions.boxes) {
    scratch_size_ = 2 * (y_.axis.padded + x_.axis.padded);
    return;
  }
  if (regions.mask_dtype == kByte) {
    int64_t longest = 0;
    for (int64_t i = 0; i < h; ++i) longest = std::max(longest, rows_.start[i + 1] - rows_.start[i]);
    exact_in_float_ = 2 * regions.height * longest <= (1 << 24);
    lower_float_.assign(rows_.lower_part.begin(), rows_.lower_part.end());
    upper_float_.assign(rows_.upper_part.begin(), rows_.upper_part.end());
  }
  scratch_size_ = 2 * h * w + (exact_in_float_ ? 2 : 5) * h * regions.width;
}

bool WeightMaker::make(int64_t image, void* weights, double* scratch) const {
  if (regions_.boxes) return from_box(static_cast<const int64_t*>(regions_.data) + 4 * image, weights, scratch);
  const int64_t bytes = regions_.height * regions_.width * kBytesPerValue[regions_.mask_dtype];
  const auto* mask = static_cast<const uint8_t*>(regions_.data) + image * bytes;
  return exact_in_float_ ? from_bytes(mask, weights, scratch) : from_mask(mask, weights, scratch);
}

bool WeightMaker::from_box(const int64_t* box, void* weights, double* scratch) const {
  const int64_t x0 = box[0], y0 = box[1], x1 = box[2], y1 = box[3];
  if (x0 < 0 || y0 < 0 || x1 < x0 || y1 < y0 || x1 > regions_.width || y1 > regions_.height) return false;
  (wide_ ? kernels_.box_weights_double : kernels_.box_weights_float)(y_.axis, x_.axis, box, weights, scratch);
  return true;
}

bool WeightMaker::from_bytes(const uint8_t* mask, void* weights, double* scratch) const {
  const int64_t width = regions_.width;
  double *sums = scratch, *values = sums + 2 * h_ * w_;
  float* lower = reinterpret_cast<float*>(values + h_ * width);
  float* upper = lower + h_ * width;
  for (int64_t i = 0; i < h_; ++i) {
    const int64_t first = rows_.start[i], count = rows_.start[i + 1] - first;
    kernels_.fold_bytes(mask + first * width, width, count, lower_float_.data() + first, upper_float_.data() + first,
                        lower + i * width, upper + i * width);
  }
  fold_columns(lower, upper, h_, w_, columns_, values, sums);
  for (int64_t i = 0; i < h_; ++i)
    for (int64_t j = 0; j < w_; ++j) sums[(h_ + i) * w_ + j] = y_.axis.total[i] * x_.axis.total[j] - sums[i * w_ + j];
  normalise(sums, weights);
  return true;
}

bool WeightMaker::from_mask(const uint8_t* mask, void* weights, double* scratch) const {
  const int64_t width = regions_.width, row_bytes = width * kBytesPerValue[regions_.mask_dtype];
  const int64_t folded = h_ * width;
  double *sums = scratch, *values = sums + 2 * h_ * w_;
  double* part = values + folded;  // [4, h, W]: lower and upper of the inside, then of the outside
  bool valid = true;
  for (int64_t i = 0; i < h_; ++i) {
    const int64_t first = rows_.start[i], count = rows_.start[i + 1] - first, at = i * width;
    valid &= kernels_.fold[regions_.mask_dtype](mask + first * row_bytes, width, count, rows_.lower_part.data() + first,
                                                rows_.upper_part.data() + first, part + at, part + folded + at,
                                                part + 2 * folded + at, part + 3 * folded + at);
  }
  fold_columns(part, part + folded, h_, w_, columns_, values, sums);
  fold_columns(part + 2 * folded, part + 3 * folded, h_, w_, columns_, values, sums + h_ * w_);
  normalise(sums, weights);
  return valid;
}

void WeightMaker::normalise(double* sums, void* weights) const {
  if (wide_) {
    normalise_as(sums, h_ * w_, static_cast<double*>(weights));
  } else {
    normalise_as(sums, h_ * w_, static_cast<float*>(weights));
  }
}

}  // namespace mixfast
