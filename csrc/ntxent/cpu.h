// SPDX-License-Identifier: MIT
// nt_xent on CPU: losses of all anchors, and the gradients of all rows from one more pass. No Python, no torch.
//
// Rows are numbered through both views: [0, N) for the first, [N, 2N) for the second. Statistics are float, or double
// if the rows are double: `Real` below.
#pragma once

#include <cstdint>

#include "common/instruction_sets.h"
#include "common/matrix.h"

namespace mixfast {
namespace ntxent {

enum class Reduction : int { kNone, kMean, kSum };

struct Views {
  Matrix first, second;  // [N][D], adjacent elements, of one type
  int64_t dim;
  const int64_t* excluded;  // [2N]: one more row that an anchor omits, or -1; null: no such rows
  double temperature;
};

struct Forward {
  Views views;
  Reduction reduction;
  void* losses;  // Real [2N] for kNone, else [1]
  void*
      denominators;  // Real [2][2N], two summands: log2 of the sum over the rows that an anchor sees, its positive too
  void* shares;      // Real [2N]: what part of that sum the negatives have
  int threads;
  Isa isa;
};

// Returns -1; or, before any other work, the first anchor whose entry of `excluded` is its positive or not a row.
int64_t forward(const Forward& call);

struct Backward {
  Views views;
  Reduction reduction;
  const void* grad_losses;            // Real [2N] for kNone, else [1]
  int64_t grad_stride;                // elements between its entries
  const void *denominators, *shares;  // from the forward pass
  void* d_rows;                       // [2N][D] in the type of the rows
  void* d_temperature;                // Real [1]; null: not wanted
  int threads;
  Isa isa;
};

void backward(const Backward& call);

}  // namespace ntxent
}  // namespace mixfast
