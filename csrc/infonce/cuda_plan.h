// SPDX-License-Identifier: MIT
// What the kernels of multi_queue_infonce on CUDA are told, and how work is cut. Host C++ without a CUDA header.
//
// Rows are counted in two orders: term after term, as everywhere outside, and queue after queue ("slots"), so that the
// rows of a tile read one queue, whatever their terms. A unit is a tile of slots x a chunk of their queue's keys.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "infonce/cuda.h"

namespace mixfast::gpu::infonce {

constexpr int kMaxTerms = 32;  // of one launch; a call of more makes several

// How a block of the main kernel is built. A warp has `sets` times 16 rows of a tile, and all dimensions; a group of
// `warps` has all rows of the tile, and of two groups each takes its half of the keys of a stage.
struct Tiling {
  int groups, warps, sets, keys, stages, parts;
  int blocks;  // at once on a multiprocessor
  int rows, threads, row_bytes, query_bytes, stage_bytes, shared_bytes;
};

constexpr Tiling make_tiling(int dim, int groups, int warps, int sets, int keys, int stages, int parts, int blocks) {
  const int rows = 16 * sets * warps, threads = 32 * groups * warps, row_bytes = 2 * dim;
  const int query_bytes = parts * rows * row_bytes, stage_bytes = parts * groups * keys * row_bytes;
  return {groups,
          warps,
          sets,
          keys,
          stages,
          parts,
          blocks,
          rows,
          threads,
          row_bytes,
          query_bytes,
          stage_bytes,
          query_bytes + stages * stage_bytes};
}

// For padded dimensions: as many rows as registers allow, where the products stay, since every row tile reads all keys;
// eight warps on a multiprocessor, with the 99 KiB of shared memory of sm_86, 89 and 120.
constexpr Tiling tiling(Factors factors, int dim) {
  if (factors == Factors::kSplit)
    return dim == 256 ? make_tiling(dim, 1, 4, 1, 16, 2, 2, 1) : make_tiling(dim, 1, 8, 1, 32, 2, 2, 1);
  if (dim == 256) return make_tiling(dim, 1, 8, 1, 32, 2, 1, 1);
  if (dim == 128) return make_tiling(dim, 2, 4, 2, 64, 2, 1, 1);
  return make_tiling(dim, 1, 4, 2, 64, 3, 1, 2);
}

template <Factors kFactors, int kDim>
constexpr Tiling kTilingOf = tiling(kFactors, kDim);

constexpr int padded(int64_t dim) { return dim <= 64 ? 64 : dim <= 128 ? 128 : 256; }

// How rows of the caller's memory reach a tile.
enum class Access : int {
  kCopied,     // already of the factors' type: 16-byte copies that nobody waits for
  kConverted,  // read 16 bytes at a time
  kScattered,  // read number by number: any alignment, any strides
};

struct TermOf {
  const void *queries, *positives;
  int64_t query_stride, positive_stride;  // between rows, in elements
  float temperature;
  int queue;  // index among Call::queues
  int rows, first_row, first_slot;
};

struct QueueOf {
  const void* keys;
  int64_t row_stride, column_stride;
  int count, index;  // keys; which of the caller's queues
  int first_slot, rows, tiles, first_unit;
};

// Passed to kernels by value: nothing has to be copied to the device first, in a captured graph neither.
struct Call {
  TermOf terms[kMaxTerms];
  QueueOf queues[kMaxTerms];
  int term_count, queue_count, rows, dim, padded_dim;
  int chunk, chunks;  // keys of a chunk; chunks of the longest queue
  Type query_type, key_type, temperature_type;
  Access query_access, key_access;
  const int64_t* valid_len;
  const void* temperatures;
  int64_t temperature_stride;
  float *maxima, *sums, *products;  // [chunks][rows], [chunks][rows], [chunks][rows][padded_dim], rows by slots
  float *losses, *shares, *grads;   // [rows], [rows], [rows][dim]; grads may be null
};

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Chunks of `chunk` keys for queues of `keys[i]` keys and `tiles[i]` row tiles.
struct Division {
  int64_t chunk, chunks;
};

// By shapes alone, not by the device: the number of chunks decides the last bits of a result. The least of a count of
// steps, tiles of keys one after another, for blocks that run in rounds on the multiprocessors of a large GPU.
inline Division divide(const std::vector<int64_t>& keys, const std::vector<int64_t>& tiles, const Tiling& tiling,
                       int64_t row_floats) {
  constexpr int64_t kMultiprocessors = 132, kBlockSteps = 4;  // a block costs so many steps besides its keys
  constexpr int64_t kMostChunks = 64, kLargestPartials = 21 << 20;
  const int64_t step = tiling.groups * tiling.keys;
  int64_t longest = 1, rows = 0;
  for (const int64_t each : keys) longest = std::max(longest, ceil_div(each, step));
  for (const int64_t each : tiles) rows += each * tiling.rows;
  const int64_t affordable = std::max<int64_t>(1, kLargestPartials / (rows * row_floats * 4));
  Division best = {longest, 1};
  int64_t least = INT64_MAX;
  for (int64_t chunks = 1; chunks <= std::min({kMostChunks, affordable, longest}); ++chunks) {
    const int64_t steps = ceil_div(longest, chunks);
    int64_t blocks = 0;
    for (size_t i = 0; i < keys.size(); ++i) blocks += tiles[i] * ceil_div(ceil_div(keys[i], step), steps);
    const int64_t cost = ceil_div(blocks, kMultiprocessors * tiling.blocks) * (steps + kBlockSteps);
    if (cost < least) {
      least = cost;
      best = {steps, ceil_div(longest, steps)};
    }
  }
  return {best.chunk * step, best.chunks};
}

}  // namespace mixfast::gpu::infonce
