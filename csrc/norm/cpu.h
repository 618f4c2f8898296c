// SPDX-License-Identifier: MIT
// Batch norm within groups of samples on CPU, forward and backward. No Python, no torch.
//
// Group s holds samples s, s + S, s + 2 S ... of N, that is M = (N / S) P numbers for each of its channels. Statistics
// and parameters are float, or double if the maps are double: `Real` below.
#pragma once

#include <cstdint>

#include "common/instruction_sets.h"
#include "common/matrix.h"

namespace mixfast {
namespace splitnorm {

// Maps [N][C][P], or [N][P][C] if channels_last, of P pixels each; N is a multiple of groups.
struct Maps {
  int64_t samples, channels, pixels, groups;
  bool channels_last;
  Type type;
};

// y = relu(norm of x + residual).
struct Forward {
  Maps maps;
  const void *x, *weight, *bias;     // maps; Real [C]
  void *running_mean, *running_var;  // Real [C], moved by momentum towards the groups' mean; null: not used
  const void *residual;              // maps; null: nothing is added
  double momentum, eps;
  bool relu;
  void *y, *means, *inverses;  // maps; Real [S][C], inverses being 1 / sqrt(variance + eps)
  int threads;
  Isa isa;
};

void forward(const Forward &call);

struct Backward {
  Maps maps;
  const void *dy, *x, *y, *weight, *means, *inverses;  // y null: there was no relu
  void *dx, *d_residual, *d_weight, *d_bias;           // maps, d_residual null: not wanted; Real [C]
  int threads;
  Isa isa;
};

void backward(const Backward &call);

}  // namespace splitnorm
}  // namespace mixfast
