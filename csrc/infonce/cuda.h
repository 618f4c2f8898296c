// SPDX-License-Identifier: MIT
// multi_queue_infonce on CUDA: what the bindings call. Needs no CUDA header.
#pragma once

#include <cstdint>
#include <vector>

#include "common/place.h"
#include "infonce/cpu.h"

namespace mixfast::gpu::infonce {

using mixfast::infonce::Reduction;
using mixfast::infonce::Term;
using Matrix = decltype(Term::queries);
using Type = decltype(Matrix::type);

constexpr int64_t kLargestDim = 256;

// How matrix products are made: of float16, of bfloat16, or of numbers below 4094 split into the sum of two float16,
// which takes three products and keeps 22 bits. Other types are converted while they are read.
enum class Factors : int { kHalf, kBFloat16, kSplit };

// The main kernel: by mma.sync, from sm_80 on, or by TMA and wgmma, on sm_90 alone; what the second cannot take
// (numbers that are split, queues that are no 16-byte aligned rows of the factors' type), the first one does.
enum class Kernel : int { kAmpere, kHopper };

// A tensor [T]; if it is null, the temperatures of the terms count.
struct Temperatures {
  const void* tensor;
  int64_t stride;  // elements
  Type type;
};

struct Forward {
  std::vector<Term> terms;     // rows of queries and positives hold adjacent elements
  std::vector<Matrix> queues;  // any strides
  const int64_t* valid_len;    // [Q], clamped to [0, K]; null: all keys count
  Temperatures temperatures;
  int64_t dim;
  Reduction reduction;
  Factors factors;
  float* losses;          // [N] for kNone, else [T]
  float* grad_queries;    // [N][D], or null: not wanted
  float* negative_share;  // [N]
  float* workspace;       // [workspace_floats(...)], aligned to 16 bytes
  Kernel kernel = Kernel::kAmpere;
};

struct Backward {
  std::vector<Term> terms;  // queries, rows and temperature are used
  Temperatures temperatures;
  int64_t dim;
  Reduction reduction;
  const float* grad_losses;  // [N] for kNone, else [T]
  int64_t grad_stride;       // elements between its entries
  const float *grad_queries, *negative_share;
  void *d_queries, *d_positives;  // [N][D] in the type of the queries; null: not wanted
  float* d_temperature;           // [T]; null: not wanted
};

// What a forward pass needs to work in: `rows` and `queue_index` of each term, `keys` of each queue.
int64_t workspace_floats(const std::vector<int64_t>& rows, const std::vector<int64_t>& queue_index,
                         const std::vector<int64_t>& keys, int64_t dim, Factors factors, bool need_grad,
                         Reduction reduction, Kernel kernel = Kernel::kAmpere);

// Which kernel calls on a device take: what use_kernel() has set, else what a table says of the architecture.
Kernel kernel_on(int device);

// For the calls of this process from now on: a Kernel, or -1, the table again.
void use_kernel(int kernel);

// Whether kHopper was built.
bool has_hopper();

// Each returns an error's description, or null; launches are not waited for.
const char* forward(const Place& place, const Forward& call);
const char* backward(const Place& place, const Backward& call);

}  // namespace mixfast::gpu::infonce
