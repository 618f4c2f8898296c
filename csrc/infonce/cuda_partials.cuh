// SPDX-License-Identifier: MIT
// The main kernel of multi_queue_infonce on CUDA: a tile of rows against a chunk of keys.
// Stages    tiles of keys in shared memory, each for both products; all but one are under way
// Groups    of warps, if there are two, have the same rows and take turns with the keys; their results are joined last
#pragma once

#include "infonce/cuda_warp.cuh"

namespace mixfast::gpu::infonce {

// Block `unit` of the plan. A chunk beyond the valid keys writes nothing, and nothing reads its results.
template <Factors kFactors, int kDim, bool kGrad>
__global__ void __launch_bounds__(kTilingOf<kFactors, kDim>.threads, kTilingOf<kFactors, kDim>.blocks)
    partials(const __grid_constant__ Call call) {
  constexpr Tiling kTiling = kTilingOf<kFactors, kDim>;
  constexpr int kRows = kTiling.rows, kKeys = kTiling.keys, kStages = kTiling.stages, kThreads = kTiling.threads;
  constexpr int kStep = kTiling.groups * kKeys;
  unsigned char* const queries = shared_memory();
  unsigned char* const stages = queries + kTiling.query_bytes;
  const UnitOf unit = unit_of(call, blockIdx.x);
  const QueueOf& queue = call.queues[unit.queue];
  const int first = unit.chunk * call.chunk, known = keys_of(call, queue);
  const int last = first + call.chunk < known ? first + call.chunk : known;
  if (first >= last) return;

  // The table lies where the last stage will, which is first written in the loop, after a barrier.
  unsigned char* const spare = stages + (kStages - 1) * kTiling.stage_bytes;
  const RowTable table = {reinterpret_cast<const unsigned char**>(spare), reinterpret_cast<float*>(spare + 8 * kRows)};
  find_rows<kRows, kThreads>(call, unit, table);
  __syncthreads();
  const int group = threadIdx.x / kWarp / kTiling.warps;
  const int warp_row = threadIdx.x / kWarp % kTiling.warps * 16 * kTiling.sets;
  Warp<kFactors, kDim, kGrad> warp = {};
  warp.begin(table.scales + warp_row);
  const Rows query_rows = {call.query_type, call.query_access, 1, call.dim};
  load_tile<kFactors, kDim, kRows, kThreads>(queries, query_rows, [&](int row) { return table.addresses[row]; });

  const Rows key_rows = {call.key_type, call.key_access, queue.column_stride, call.dim};
  const int steps = (last - first + kStep - 1) / kStep;
#pragma unroll 1
  for (int i = 1 - kStages; i < steps; ++i) {
    if (i >= 0) {
      cp_async_wait<kStages - 2>();
      __syncthreads();
    }
    if (const int next = i + kStages - 1; next < steps) {
      const int key = first + next * kStep, count = last - key;
      const unsigned char* const from = advanced(queue.keys, key * queue.row_stride, call.key_type);
      const int64_t stride = queue.row_stride * bytes_of(call.key_type);
      load_tile<kFactors, kDim, kStep, kThreads>(stages + next % kStages * kTiling.stage_bytes, key_rows,
                                                 [&](int row) { return row < count ? from + row * stride : nullptr; });
    }
    cp_async_commit();
    if (i < 0) continue;
    const int count = last - first - i * kStep - group * kKeys;
    if (count <= 0) continue;
    const unsigned char* const tile = stages + i % kStages * kTiling.stage_bytes + group * kKeys * kTiling.row_bytes;
    float scores[kTiling.sets][kKeys / 8][4] = {};
    warp.multiply_keys(queries + warp_row * kTiling.row_bytes, tile, scores);
    warp.weigh(scores, count);
    if constexpr (kGrad) warp.add_keys(tile, scores);
  }
  if constexpr (kTiling.groups == 2) {
    float* const shared = reinterpret_cast<float*>(shared_memory()) + threadIdx.x % (kThreads / 2);
    __syncthreads();
    if (group == 1) warp.give(shared);
    __syncthreads();
    if (group == 1) return;
    warp.take(shared);
  }
  const int tile_row = unit.tile * kRows + warp_row;
  warp.write(call, unit.chunk, queue.first_slot + tile_row, queue.rows - tile_row);
}

}  // namespace mixfast::gpu::infonce
