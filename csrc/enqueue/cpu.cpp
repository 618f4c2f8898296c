// SPDX-License-Identifier: MIT
// enqueue_ on CPU. Every row is written by one thread: the same bits for any number of threads.
#include "enqueue/cpu.h"

#include <algorithm>
#include <cmath>
#include <memory>

#include "common/rows.h"

namespace mixfast {
namespace enqueue {
namespace {

constexpr int64_t kThreadElements = 1 << 16;  // worth another thread

// Rows are computed in Real: float, or double for double keys.
template <class Real>
void copy_row(const Call& call, const Ring& ring, int64_t row, int64_t place, Real* values) {
  convert(ring.keys, call.key_type, row * call.dim, 1, call.dim, values);
  if (call.normalize) {
    double square = 0;
    for (int64_t d = 0; d < call.dim; ++d) square += static_cast<double>(values[d]) * static_cast<double>(values[d]);
    const Real length = static_cast<Real>(std::max(std::sqrt(square), kLeastLength));
    for (int64_t d = 0; d < call.dim; ++d) values[d] /= length;
  }
  convert_back(values, call.dim, ring.queue, call.queue_type, place * call.dim);
}

template <class Real>
void run_ring(const Call& call, const Ring& ring, int most_threads) {
  const int64_t start = (*ring.pointer % ring.size + ring.size) % ring.size;
  const int threads = static_cast<int>(std::min<int64_t>(most_threads, 1 + ring.rows * call.dim / kThreadElements));
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    const std::unique_ptr<Real[]> values(new Real[call.dim]);
#pragma omp for schedule(static)
    for (int64_t row = 0; row < ring.rows; ++row) {
      copy_row(call, ring, row, (start + row) % ring.size, values.get());
    }
  }
  *ring.pointer = (start + ring.rows) % ring.size;
}

}  // namespace

void run(const Call& call, int threads) {
  for (const Ring& ring : call.rings) {
    call.key_type == Type::kDouble ? run_ring<double>(call, ring, threads) : run_ring<float>(call, ring, threads);
  }
}

}  // namespace enqueue
}  // namespace mixfast
