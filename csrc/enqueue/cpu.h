// SPDX-License-Identifier: MIT
// enqueue_: new keys over the oldest rows of ring queues; here on CPU. No Python, no torch.
#pragma once

#include <cstdint>
#include <vector>

#include "common/matrix.h"

namespace mixfast {
namespace enqueue {

constexpr double kLeastLength = 1e-12;  // as in torch.nn.functional.normalize

struct Ring {
  void* queue;       // [size][dim]
  const void* keys;  // [rows][dim], rows <= size
  int64_t* pointer;  // the row that is written next; any number stands for itself modulo size
  int64_t size, rows;
};

struct Call {
  std::vector<Ring> rings;
  Type queue_type, key_type;
  int64_t dim;
  bool normalize;  // rows are divided by their lengths
};

void run(const Call& call, int threads);

}  // namespace enqueue
}  // namespace mixfast
