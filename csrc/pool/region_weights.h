// SPDX-License-Identifier: MIT
// masked_upsample_pool on CPU: makes the weights of one image after another.
#pragma once

#include <vector>

#include "pool/cpu.h"

namespace mixfast {

// One axis as a mask is folded along it: pixels [start[i], start[i + 1]) lie between cells i and i + 1, and give
// lower_part of their 2N parts to the one and upper_part to the other.
struct PixelRuns {
  std::vector<int64_t> start;
  std::vector<double> lower_part, upper_part;
  PixelRuns(int64_t cells, int64_t pixels);
};

struct AxisTable {
  std::vector<double> numbers;
  Axis axis;
  AxisTable(int64_t cells, int64_t pixels);
};

class WeightMaker {
 public:
  WeightMaker(const WeightKernels& kernels, const Regions& regions, int64_t h, int64_t w, bool wide);
  // Doubles that `make` needs to work in, per thread.
  int64_t scratch_size() const { return scratch_size_; }
  // Writes the weights [2, h, w] of an image; false if its region is not valid.
  bool make(int64_t image, void* weights, double* scratch) const;

 private:
  bool from_box(const int64_t* box, void* weights, double* scratch) const;
  bool from_mask(const uint8_t* mask, void* weights, double* scratch) const;
  bool from_bytes(const uint8_t* mask, void* weights, double* scratch) const;
  void normalise(double* sums, void* weights) const;

  const WeightKernels& kernels_;
  const Regions regions_;
  const int64_t h_, w_;
  const bool wide_;
  AxisTable y_, x_;
  PixelRuns rows_, columns_;
  std::vector<float> lower_float_, upper_float_;
  bool exact_in_float_ = false;
  int64_t scratch_size_ = 0;
};

}  // namespace mixfast
