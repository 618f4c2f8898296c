// SPDX-License-Identifier: MIT
// The main kernel of multi_queue_infonce on sm_90a: a tile of rows against a chunk of keys, as in cuda_partials.cuh.
// Roles     one thread copies tiles of keys into a ring of stages; two warpgroups of consumers have 64 rows each
// Barriers  a stage is full when its bytes have arrived, empty when all eight warps of consumers have let go of it
// Overlap   while the weights of a tile are computed, the tensor cores multiply those of the tile before with its keys;
//           wgmma's groups end in order, so the scores are there when all groups but the last have ended
#pragma once

#include "infonce/hopper_consumer.cuh"

namespace mixfast::gpu::infonce {

struct Maps {
  CUtensorMap keys[kMaxTerms];  // of each of Call::queues: boxes of a tile's keys x kPanel dimensions
};

// What a block shares, after its start has been aligned.
template <int kDim>
struct Shared {
  static constexpr Tiling kTiling = kHopperTilingOf<kDim>;
  unsigned char* queries;  // [kDim / kPanel][rows][128 bytes], swizzled, as each stage with its keys
  unsigned char* stages;
  RowTable table;
  uint64_t *full, *empty;  // [stages]

  __device__ explicit Shared(unsigned char* start) {
    queries = start + (kPanelBytes - shared_address(start) % kPanelBytes) % kPanelBytes;
    stages = queries + kTiling.query_bytes;
    full = reinterpret_cast<uint64_t*>(stages + kTiling.stages * kTiling.stage_bytes);
    empty = full + kTiling.stages;
    table.addresses = reinterpret_cast<const unsigned char**>(empty + kTiling.stages);
    table.scales = reinterpret_cast<float*>(table.addresses + kTiling.rows);
  }

  __device__ unsigned char* stage(int step) const { return stages + step % kTiling.stages * kTiling.stage_bytes; }

  // By one thread, before a barrier of the block.
  __device__ void begin_barriers() const {
    for (int s = 0; s < kTiling.stages; ++s) {
      mbarrier_init(full + s, 1);
      mbarrier_init(empty + s, kConsumers / kWarp);
    }
    fence_proxy_async();
  }

  // Consumers: the keys of a step are there; those from `count` on, which may be anything, become zeros.
  __device__ void await(int step, int count) const {
    mbarrier_wait(full + step % kTiling.stages, step / kTiling.stages % 2);
    if (count >= kTiling.keys) return;
    const int words = (kTiling.keys - count) * 8;
#pragma unroll 1
    for (int i = threadIdx.x; i < words * (kDim / kPanel); i += kConsumers) {
      unsigned char* const row = stage(step) + (i / words * kTiling.keys + count) * 2 * kPanel;
      *reinterpret_cast<uint4*>(row + i % words * 16) = make_uint4(0, 0, 0, 0);
    }
    fence_proxy_async();
    barrier_sync(1, kConsumers);
  }

  // Consumers: this warp, which has waited for its products, reads no more of a step's keys.
  __device__ void let_go(int step) const {
    if (threadIdx.x % kWarp == 0) mbarrier_arrive(empty + step % kTiling.stages);
  }
};

// One thread: the keys from `first` on, tile after tile.
template <int kDim>
__device__ inline void copy_keys(const Shared<kDim>& shared, const CUtensorMap* keys, int first, int steps) {
  constexpr Tiling kTiling = Shared<kDim>::kTiling;
#pragma unroll 1
  for (int i = 0; i < steps; ++i) {
    const int stage = i % kTiling.stages, round = i / kTiling.stages;
    if (round > 0) mbarrier_wait(shared.empty + stage, (round - 1) % 2);
    mbarrier_arrive_expect(shared.full + stage, kTiling.stage_bytes);
    for (int p = 0; p < kDim / kPanel; ++p)
      copy_box(shared.stage(i) + p * kTiling.keys * 2 * kPanel, keys, p * kPanel, first + i * kTiling.keys,
               shared.full + stage);
  }
}

// Consumers: the rows of the block's tile, zeros where there are none, and their scales.
template <Factors kFactors, int kDim>
__device__ inline void load_queries(const Call& call, const UnitOf& unit, const Shared<kDim>& shared) {
  constexpr int kRows = Shared<kDim>::kTiling.rows;
  find_rows<kRows, kConsumers>(call, unit, shared.table);
  barrier_sync(1, kConsumers);
#pragma unroll 1
  for (int p = 0; p < kDim / kPanel; ++p) {
    const int before = p * kPanel, bytes = before * bytes_of(call.query_type);
    load_tile<kFactors, kPanel, kRows, kConsumers>(shared.queries + p * kRows * 2 * kPanel,
                                                   Rows{call.query_type, call.query_access, 1, call.dim - before},
                                                   [&](int row) {
                                                     const unsigned char* const from = shared.table.addresses[row];
                                                     return from == nullptr ? nullptr : from + bytes;
                                                   });
  }
  cp_async_commit();
  cp_async_wait<0>();
  fence_proxy_async();
  barrier_sync(1, kConsumers);
}

// Consumers: the chunk's `count` keys for the rows of this warpgroup.
template <Factors kFactors, int kDim, bool kGrad>
__device__ inline void consume(Consumer<kFactors, kDim, kGrad>& consumer, const Shared<kDim>& shared, int count) {
  constexpr int kKeys = Shared<kDim>::kTiling.keys;
  const unsigned char* const queries = shared.queries + threadIdx.x / kWarpgroup * 64 * 2 * kPanel;
  const int steps = (count + kKeys - 1) / kKeys;
  if constexpr (kGrad) {
    shared.await(0, count);
    wgmma_fence(consumer.scores);
    consumer.start_scores(queries, shared.stage(0));
    wgmma_wait<0>(consumer.scores);
    consumer.weigh(count);
    consumer.round();
#pragma unroll 1
    for (int i = 1; i < steps; ++i) {
      shared.await(i, count - i * kKeys);
      wgmma_fence(consumer.scores, consumer.weights, consumer.products);
      consumer.start_scores(queries, shared.stage(i));
      consumer.start_products(shared.stage(i - 1));
      wgmma_wait<1>(consumer.scores);
      consumer.weigh(count - i * kKeys);
      // Never taken, as no sum is negative, but not known before weigh() ends: ptxas would wait before it otherwise.
      if (__ballot_sync(kAllLanes, consumer.sum[0] + consumer.sum[1] < -1) != 0) return;
      wgmma_wait<0>(consumer.weights, consumer.products);
      shared.let_go(i - 1);
      consumer.rescale();
      consumer.round();
    }
    wgmma_fence(consumer.weights, consumer.products);
    consumer.start_products(shared.stage(steps - 1));
    wgmma_wait<0>(consumer.weights, consumer.products);
  } else {
#pragma unroll 1
    for (int i = 0; i < steps; ++i) {
      shared.await(i, count - i * kKeys);
      wgmma_fence(consumer.scores);
      consumer.start_scores(queries, shared.stage(i));
      wgmma_wait<0>(consumer.scores);
      shared.let_go(i);
      consumer.weigh(count - i * kKeys);
    }
  }
}

// Block `unit` of the plan. A chunk beyond the valid keys writes nothing, and nothing reads its results.
template <Factors kFactors, int kDim, bool kGrad>
__global__ void __launch_bounds__(kHopperThreads, 1)
    hopper_partials(const __grid_constant__ Call call, const __grid_constant__ Maps maps) {
  constexpr Tiling kTiling = kHopperTilingOf<kDim>;
  const UnitOf unit = unit_of(call, blockIdx.x);
  const QueueOf& queue = call.queues[unit.queue];
  const int first = unit.chunk * call.chunk, known = keys_of(call, queue);
  const int count = (first + call.chunk < known ? first + call.chunk : known) - first;
  if (count <= 0) return;

  const Shared<kDim> shared(shared_memory());
  if (threadIdx.x == 0) shared.begin_barriers();
  __syncthreads();
  if (threadIdx.x >= kConsumers) {
    give_registers<24>();
    if (threadIdx.x == kConsumers)
      copy_keys(shared, maps.keys + unit.queue, first, (count + kTiling.keys - 1) / kTiling.keys);
  } else {
    take_registers<240>();
    load_queries<kFactors>(call, unit, shared);
    const int warp_row = threadIdx.x / kWarp * 16, tile_row = unit.tile * kTiling.rows + warp_row;
    Consumer<kFactors, kDim, kGrad> consumer = {};
    consumer.begin(shared.table.scales + warp_row);
    consume(consumer, shared, count);
    consumer.write(call, unit.chunk, queue.first_slot + tile_row, queue.rows - tile_row);
  }
}

}  // namespace mixfast::gpu::infonce
