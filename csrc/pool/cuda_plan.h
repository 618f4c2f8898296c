// SPDX-License-Identifier: MIT
// masked_upsample_pool on CUDA: how the maps of an image are divided among blocks and threads. Plain arithmetic.
#pragma once

#include <algorithm>
#include <cstdint>

#include "pool/cpu.h"

namespace mixfast::gpu {

constexpr int64_t kVectorBytes = 16;
constexpr int64_t kTileBytes = 24 << 10;     // of maps, read or written by a block
constexpr int64_t kEnoughBlocks = 512;       // while there are fewer, blocks are made smaller
constexpr int64_t kPassBytes = 32 << 10;     // of maps that threads work on at once; longer maps come in chunks
constexpr int64_t kWeightsChunk = 1024;      // positions of which a block makes the weights at once, otherwise
constexpr int64_t kMostPositions = 1 << 27;  // of a map, so that places in it and in a few maps are an int
constexpr int64_t kMostChannels = (1 << 30) - 1;

// Channels that a thread works on at once. One element from shared memory needs a load of its weights beside it; with
// four channels, four elements share that.
constexpr int kScalarChannels = 4, kVectorChannels = 2;
constexpr int kAhead = 8;  // channels last: vectors that a thread has under way

inline bool can_plan(int64_t h, int64_t w, int64_t channels = 0) {
  return h <= kMostPositions && w <= kMostPositions && h * w <= kMostPositions && channels <= kMostChannels;
}

inline int64_t divided_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t rounded_up(int64_t a, int64_t b) { return divided_up(a, b) * b; }
inline int64_t power_of_two(int64_t at_least) {
  int64_t power = 1;
  while (power < at_least) power *= 2;
  return power;
}

// The most elements, in 16 or 8 bytes or one element, to which all addresses base + i * step bytes are aligned.
inline int64_t vector_at_all(const void* base, int64_t step, int64_t element) {
  for (const int64_t bytes : {kVectorBytes, kVectorBytes / 2}) {
    if (bytes > element && reinterpret_cast<uintptr_t>(base) % bytes == 0 && step % bytes == 0) return bytes / element;
  }
  return 1;
}

// How many channels a block takes: the most whole passes within kTileBytes, fewer if there would be too few blocks.
inline int64_t channels_of_block(const Maps& maps, int64_t channel_bytes, int64_t pass) {
  int64_t channels = std::max(pass, kTileBytes / channel_bytes / pass * pass);
  while (channels > pass && maps.batch * divided_up(maps.channels, channels) < kEnoughBlocks)
    channels = rounded_up(channels / 2, pass);
  return channels;
}

// Bytes to make the weights of `chunk` positions in a row: two scales, and two sums for each row and column that they
// touch at most.
inline int64_t scratch_bytes(int64_t chunk, int64_t h, int64_t w) {
  const int64_t cells = std::min(h, chunk / w + 2) + std::min(w, chunk);
  return (1 + cells) * 2 * static_cast<int64_t>(sizeof(double));
}

struct PoolPlan {
  int vector;      // elements that a thread reads at once
  int lanes;       // neighbouring threads that share a channel; if channels are last, threads across channels
  int channels;    // of a block
  unsigned tiles;  // blocks of an image
  int chunk;       // positions whose weights are in shared memory
  int row_bytes;   // from channel to channel in shared memory if a map takes several chunks, else 0
  int weights;     // where the weights lie in shared memory, behind the maps
  int scratch;     // where they are made from lies, behind them
  int used_bytes;  // of shared memory
};

inline PoolPlan pool_plan(const Maps& maps, int64_t vector, int64_t lanes, int64_t channels, int64_t chunk,
                          int64_t row_bytes, int64_t map_bytes, int64_t sum_size) {
  const int64_t weights = rounded_up(map_bytes, kVectorBytes);
  const int64_t scratch = weights + rounded_up(chunk * 2 * sum_size, kVectorBytes);
  const int64_t used = scratch + scratch_bytes(chunk, maps.h, maps.w);
  return {static_cast<int>(vector),   static_cast<int>(lanes),
          static_cast<int>(channels), static_cast<unsigned>(divided_up(maps.channels, channels)),
          static_cast<int>(chunk),    static_cast<int>(row_bytes),
          static_cast<int>(weights),  static_cast<int>(scratch),
          static_cast<int>(used)};
}

// Threads that share a channel: as many as there are vectors in 16 positions, for maps no larger; else this many.
constexpr int kLanes = 8;
constexpr int short_lanes(int64_t element) { return static_cast<int>(16 * element / kVectorBytes); }

// Blocks of `threads` that copy whole channels to shared memory.
inline PoolPlan plan_pool(const Maps& maps, const void* features, int64_t element, int64_t sum_size, int threads) {
  const int64_t positions = maps.h * maps.w, bytes = positions * element,
                aligned = vector_at_all(features, bytes, element);
  const int64_t vector = element == 2 || aligned * element == kVectorBytes ? aligned : 1;
  const int64_t lanes = positions <= 16 && vector * element == kVectorBytes ? short_lanes(element) : kLanes;
  const int64_t pass = threads / lanes * (vector == 1 ? kScalarChannels : kVectorChannels);
  const bool whole = pass * bytes <= kPassBytes;
  const int64_t chunk = whole ? positions : kPassBytes / pass / element;
  const int64_t channels = whole ? channels_of_block(maps, bytes, pass) : pass;
  const int64_t row_bytes = whole ? 0 : chunk * element + kVectorBytes, held = std::min(channels, maps.channels);
  const int64_t map_bytes = whole ? held * bytes + kVectorBytes : held * row_bytes;
  return pool_plan(maps, vector, lanes, channels, chunk, row_bytes, map_bytes, sum_size);
}

// Channels last: a row of threads takes neighbouring channels, the rows of threads share the positions and then add up
// what they have, in shared memory.
inline PoolPlan plan_pool_last(const Maps& maps, const void* features, int64_t element, int64_t sum_size, int threads) {
  const int64_t aligned = vector_at_all(features, maps.channels * element, element);
  const int64_t vector = aligned * element == kVectorBytes ? aligned : 1;
  const int64_t lanes = std::min<int64_t>(32, power_of_two(divided_up(maps.channels, vector)));
  const int64_t chunk = std::min(maps.h * maps.w, kWeightsChunk);
  const int64_t map_bytes = threads * std::max(kAhead * vector * element, vector * 2 * sum_size);
  return pool_plan(maps, vector, lanes, lanes * vector, chunk, 0, map_bytes, sum_size);
}

struct SpreadPlan {
  int vector;      // elements that a thread writes at once
  int lanes;       // channels last: threads across channels
  int period;      // channels after which a map and a vector begin together again
  int columns;     // vectors in a period
  int channels;    // of a block
  int positions;   // of a block
  unsigned tiles;  // blocks of an image
};

// Vectors lie anywhere in the maps, if those are at least as long.
inline SpreadPlan plan_spread(const Maps& maps, int64_t element, int threads) {
  const int64_t positions = maps.h * maps.w, full = kVectorBytes / element, vector = positions >= full ? full : 1;
  int64_t period = 1;
  while (period * positions % vector) period *= 2;
  const int64_t columns = period * positions / vector;
  const int64_t channels = channels_of_block(maps, positions * element, divided_up(threads, columns) * period);
  return {static_cast<int>(vector),
          0,
          static_cast<int>(period),
          static_cast<int>(columns),
          static_cast<int>(channels),
          static_cast<int>(positions),
          static_cast<unsigned>(divided_up(maps.channels, channels))};
}

inline SpreadPlan plan_spread_last(const Maps& maps, const void* grad, int64_t element, const void* grad_inside,
                                   const void* grad_outside) {
  int64_t vector = kVectorBytes / element;
  for (const void* each : {grad, grad_inside, grad_outside}) {
    if (vector_at_all(each, maps.channels * element, element) < vector) vector = 1;
  }
  const int64_t lanes = std::min<int64_t>(32, power_of_two(divided_up(maps.channels, vector)));
  const int64_t channels = lanes * vector, positions = std::max<int64_t>(1, kTileBytes / (channels * element));
  return {static_cast<int>(vector),
          static_cast<int>(lanes),
          0,
          0,
          static_cast<int>(channels),
          static_cast<int>(positions),
          static_cast<unsigned>(divided_up(maps.channels, channels) * divided_up(maps.h * maps.w, positions))};
}

}  // namespace mixfast::gpu
