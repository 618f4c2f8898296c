// SPDX-License-Identifier: MIT
// multi_queue_infonce on CUDA: what a block or a warp is to do, from the arguments of the call alone.
#pragma once

#include "infonce/cuda_tile.cuh"

namespace mixfast::gpu::infonce {

constexpr float kLog2E = 1.4426950408889634f, kLn2 = 0.6931471805599453f;

struct UnitOf {
  int queue, tile, chunk;
};

// Blocks that run together have the same chunk of keys.
__device__ inline UnitOf unit_of(const Call& call, int unit) {
  int queue = 0;
  while (queue + 1 < call.queue_count && unit >= call.queues[queue + 1].first_unit) ++queue;
  unit -= call.queues[queue].first_unit;
  return {queue, unit % call.queues[queue].tiles, unit / call.queues[queue].tiles};
}

__device__ inline int keys_of(const Call& call, const QueueOf& queue) {
  if (call.valid_len == nullptr) return queue.count;
  const int64_t length = call.valid_len[queue.index];
  return length < 0 ? 0 : length < queue.count ? static_cast<int>(length) : queue.count;
}

// 1 / tau.
__device__ inline float inverse_temperature(const Call& call, int term) {
  const void* const tensor = call.temperatures;
  if (tensor == nullptr) return 1 / call.terms[term].temperature;
  const int64_t i = term * call.temperature_stride;
  if (call.temperature_type == Type::kFloat) return 1 / static_cast<const float*>(tensor)[i];
  if (call.temperature_type == Type::kDouble) return as_float(1 / static_cast<const double*>(tensor)[i]);
  if (call.temperature_type == Type::kHalf) return 1 / as_float(static_cast<const __half*>(tensor)[i]);
  return 1 / as_float(static_cast<const __nv_bfloat16*>(tensor)[i]);
}

__device__ inline int bytes_of(Type type) { return type == Type::kFloat ? 4 : 2; }

__device__ inline const unsigned char* advanced(const void* data, int64_t elements, Type type) {
  return static_cast<const unsigned char*>(data) + elements * bytes_of(type);
}

// What a block knows of its rows before they are loaded: where each lies, null beyond the last, and its scale.
struct RowTable {
  const unsigned char** addresses;
  float* scales;
};

template <int kRows, int kThreads>
__device__ inline void find_rows(const Call& call, const UnitOf& unit, const RowTable& table) {
  const QueueOf& queue = call.queues[unit.queue];
  for (int r = threadIdx.x; r < kRows; r += kThreads) {
    const int slot = queue.first_slot + unit.tile * kRows + r;
    table.addresses[r] = nullptr;
    table.scales[r] = 0;
    for (int t = 0; t < call.term_count; ++t) {
      const TermOf& term = call.terms[t];
      if (term.queue != unit.queue || slot < term.first_slot || slot >= term.first_slot + term.rows) continue;
      table.addresses[r] = advanced(term.queries, (slot - term.first_slot) * term.query_stride, call.query_type);
      table.scales[r] = kLog2E * inverse_temperature(call, t);
    }
  }
}

}  // namespace mixfast::gpu::infonce
