// SPDX-License-Identifier: MIT
// split_batch_norm on CUDA: how maps are cut among blocks and threads. Plain arithmetic.
//
// A position is what a thread reads at once: if channels are last, a vector of neighbouring channels of a pixel, each
// with statistics of its own; else a vector of neighbouring pixels of one channel. The two layouts differ in the
// numbers below alone. The cut follows from shape, layout, type and alignment: the order of sums is the same on every
// GPU.
#pragma once

#include <algorithm>
#include <cstdint>
#include <initializer_list>

#include "norm/cuda.h"

namespace mixfast::gpu::norm {

constexpr int64_t kVectorBytes = 16;
constexpr int kThreads = 256;       // of every block
constexpr int kAhead = 4;           // vectors of a map that a thread has under way
constexpr int kMostLanes = 32;      // 512 bytes of neighbours, of 16-byte vectors
constexpr int kMergedChannels = 8;  // of a block that merges: a sector of partial results
constexpr int64_t kBlocks = 1056;   // aimed at: eight for each multiprocessor of a large GPU
constexpr int64_t kMostChunks = 256;
constexpr int64_t kMost = 1 << 30;  // pixels, channels, and positions of a block, so that these are an int

struct Cut {
  int64_t groups, channels;
  int64_t sample;     // elements from sample to sample
  int64_t stride;     // elements from position to position
  int64_t apart;      // elements from channel to channel
  int64_t positions;  // of a channel in a group
  int chunk;          // positions of a block
  int steps;          // positions of a channel in a sample
  int vector;         // elements of a position
  int lanes;          // neighbouring threads with channels of their own
  int columns;        // channels of a block
  unsigned chunks, tiles;
};

inline int64_t divided_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline Cut cut_by(const Maps& maps, int64_t vector) {
  const bool last = maps.channels_last;
  int64_t lanes = 1;
  while (last && lanes < kMostLanes && lanes * vector < maps.channels) lanes *= 2;
  const int64_t columns = last ? lanes * vector : 1, tiles = divided_up(maps.channels, columns);
  const int64_t steps = last ? maps.pixels : maps.pixels / vector, positions = maps.samples / maps.groups * steps;
  const int64_t turn = kThreads / lanes * kAhead;
  const int64_t most = std::min(kMostChunks, divided_up(positions, turn));
  const int64_t wanted = std::clamp<int64_t>(kBlocks / (maps.groups * tiles), 1, most);
  const int64_t chunk = divided_up(divided_up(positions, wanted), turn) * turn;
  return {maps.groups,
          maps.channels,
          maps.channels * maps.pixels,
          last ? maps.channels : vector,
          last ? 1 : maps.pixels,
          positions,
          static_cast<int>(std::min(chunk, kMost)),
          static_cast<int>(steps),
          static_cast<int>(vector),
          static_cast<int>(lanes),
          static_cast<int>(columns),
          static_cast<unsigned>(divided_up(positions, chunk)),
          static_cast<unsigned>(tiles)};
}

// Elements that one access can read, if addresses are multiples of 16 bytes: whole vectors, or one.
inline int64_t widest(const Maps& maps) {
  const int64_t full = kVectorBytes / (maps.type == Type::kFloat ? 4 : 2);
  return (maps.channels_last ? maps.channels : maps.pixels) % full == 0 ? full : 1;
}

inline Cut cut_of(const Maps& maps, std::initializer_list<const void*> addresses) {
  const auto aligned = [](const void* each) { return reinterpret_cast<uintptr_t>(each) % kVectorBytes == 0; };
  return cut_by(maps, std::all_of(addresses.begin(), addresses.end(), aligned) ? widest(maps) : 1);
}

inline bool can_plan(const Maps& maps) {
  if (maps.type == Type::kDouble || maps.pixels >= kMost || maps.channels >= kMost || maps.groups >= kMost)
    return false;
  for (const int64_t vector : {int64_t{1}, widest(maps)}) {
    const Cut cut = cut_by(maps, vector);
    const int64_t blocks = maps.groups * std::max<int64_t>(int64_t{cut.tiles} * cut.chunks, maps.channels);
    if (cut.chunk >= kMost || blocks > INT32_MAX) return false;
  }
  return true;
}

}  // namespace mixfast::gpu::norm
