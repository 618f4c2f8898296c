// SPDX-License-Identifier: MIT
// multi_queue_infonce on CPU: losses and their gradients from one pass over the queues. No Python, no torch.
//
// Letters: T terms, N rows of all terms together, D dim. Rows are counted term after term.
// Statistics are float, or double where the queries are double: `Real` below.
#pragma once

#include <cstdint>
#include <vector>

#include "common/instruction_sets.h"
#include "infonce/unit.h"

namespace mixfast {
namespace infonce {

enum class Reduction : int { kNone, kMean, kSum };

struct Term {
  Matrix queries, positives;  // [rows][D], adjacent elements, of one type
  int queue;
  double temperature;
};

struct Forward {
  std::vector<Term> terms;
  std::vector<Matrix> queues;  // [K][D], of one type; K may be 0
  int64_t dim;
  Reduction reduction;
  void* losses;          // Real [N] for kNone, else [T]
  void* grad_queries;    // Real [N][D], d loss / d query of each row by itself; null: not wanted
  void* negative_share;  // Real [N], probability that falls on the negatives
  int threads;
  Isa isa;
};

void forward(const Forward& call);

struct Backward {
  std::vector<Term> terms;  // queries and rows are used, and temperature
  int64_t dim;
  Reduction reduction;
  const void* grad_losses;                    // Real [N] for kNone, else [T]
  int64_t grad_stride;                        // elements between its entries
  const void *grad_queries, *negative_share;  // from the forward pass
  void *d_queries, *d_positives;              // [N][D] in the type of the queries; null: not wanted
  void* d_temperature;                        // Real [T]; null: not wanted
  int threads;
};

void backward(const Backward& call);

}  // namespace infonce
}  // namespace mixfast
