// SPDX-License-Identifier: MIT
// Matrices in the form in which callers pass them to the CPU kernels.
#pragma once

#include <cstdint>

namespace mixfast {

enum class Type : int { kFloat, kDouble, kHalf, kBFloat16 };

// A matrix in memory; strides count elements.
struct Matrix {
  const void* data;
  int64_t rows, row_stride, column_stride;
  Type type;
};

}  // namespace mixfast
