// SPDX-License-Identifier: MIT
// split_batch_norm on CUDA: how a block reads its chunk of a group, and how threads, then blocks, join what they have.
// Order     of all sums follows from the cut; each number has one writer: the same bits on every run
#pragma once

#include "common/elements.cuh"
#include "common/ptx.cuh"
#include "norm/cuda_plan.h"

namespace mixfast::gpu::norm {

// Where U positions of a thread lie, in elements from the first of the maps.
template <int U>
struct Cells {
  int64_t at[U];
};

template <class T, int V, int U>
struct Batch {
  static constexpr int kSize = U;
  Vector<T, V> at[U];
};

template <int V, class T, int U>
__device__ Batch<T, V, U> read(const T* maps, const Cells<U>& cells) {
  Batch<T, V, U> batch;
  for (int u = 0; u < U; ++u) batch.at[u] = vector_at<T, V>(maps + cells.at[u]);
  return batch;
}

template <class T, int V, int U>
__device__ void write(T* maps, const Cells<U>& cells, const Batch<T, V, U>& batch) {
  for (int u = 0; u < U; ++u) {
    if constexpr (sizeof(batch.at[u]) == 16) {
      store_16(maps + cells.at[u], batch.at[u]);
    } else {
      maps[cells.at[u]] = batch.at[u].values[0];
    }
  }
}

// A thread's way through its block's chunk.
template <int V>
class Walk {
 public:
  int64_t group;
  int chunk;

  __device__ explicit Walk(const Cut& cut) : cut_(cut) {
    const unsigned block = blockIdx.x, tile = block / cut.chunks % cut.tiles;
    const int lane = static_cast<int>(threadIdx.x) % cut.lanes, row = static_cast<int>(threadIdx.x) / cut.lanes;
    const int rows = kThreads / cut.lanes;
    group = block / cut.chunks / cut.tiles;
    chunk = static_cast<int>(block % cut.chunks);
    first_ = static_cast<int>(tile) * cut.columns;
    column_ = lane * V;
    const int channel = first_ + column_;
    const int64_t from = int64_t{chunk} * cut.chunk, place = from + row, rest = cut.positions - place;
    const int here = static_cast<int>(rest < cut.chunk - row ? rest : cut.chunk - row);
    left_ = channel < cut.channels && here > 0 ? (here + rows - 1) / rows : 0;
    step_ = static_cast<int>(place % cut.steps);
    turn_ = rows % cut.steps;
    cell_ = (place / cut.steps * cut.groups + group) * cut.sample + step_ * cut.stride + channel * cut.apart;
    ahead_ = rows / cut.steps * cut.groups * cut.sample + turn_ * cut.stride;
    over_ = cut.groups * cut.sample - cut.steps * cut.stride;
  }

  // Calls body(cells) with all positions of the thread, kAhead at once while there are so many.
  template <class Body>
  __device__ void each(const Body& body) {
#pragma unroll 1
    for (; left_ >= kAhead; left_ -= kAhead) body(next<kAhead>());
#pragma unroll 1
    for (; left_ > 0; --left_) body(next<1>());
  }

  // Calls body(channel, column) for the channels of the block, each in one thread.
  template <class Body>
  __device__ void each_channel(const Body& body) const {
    const int column = static_cast<int>(threadIdx.x);
    if (column < cut_.columns && first_ + column < cut_.channels) body(first_ + column, column);
  }

  // N numbers of each of the thread's channels: `make(channel, numbers)` is called once for each channel of the block.
  template <int N, class Make>
  __device__ void share(float (&mine)[N][V], const Make& make) const {
    auto* shared = reinterpret_cast<float*>(shared_memory());
    each_channel([&](int channel, int column) {
      float made[N];
      make(channel, made);
      for (int n = 0; n < N; ++n) shared[n * kThreads + column] = made[n];
    });
    __syncthreads();
    for (int n = 0; n < N; ++n) {
      for (int v = 0; v < V; ++v) mine[n][v] = shared[n * kThreads + column_ + v * (cut_.columns > 1)];
    }
  }

 private:
  template <int U>
  __device__ Cells<U> next() {
    Cells<U> cells;
    for (int u = 0; u < U; ++u) {
      cells.at[u] = cell_;
      step_ += turn_;
      cell_ += ahead_;
      if (step_ >= cut_.steps) {
        step_ -= cut_.steps;
        cell_ += over_;
      }
    }
    return cells;
  }

  const Cut& cut_;
  int first_, column_, left_, step_, turn_;
  int64_t cell_, ahead_, over_;
};

// Of `count` numbers: the mean, and the sum of squares of differences to it.
struct Moments {
  float count, mean, square;
};

// Of gradients, and of their products with something else.
struct Sums {
  float plain, weighted;
};

// Chan, Golub and LeVeque 1983: nothing cancels. A share within 2 ulp, as this division is, is as good as a rounded
// one.
__device__ inline void join(Moments& a, const Moments& b) {
  if (b.count == 0) return;
  const float count = a.count + b.count, share = __fdividef(b.count, count), apart = b.mean - a.mean;
  a.mean += apart * share;
  a.square += b.square + apart * (apart * (a.count * share));
  a.count = count;
}

__device__ inline void join(Sums& a, const Sums& b) {
  a.plain += b.plain;
  a.weighted += b.weighted;
}

// Joins what the threads of a block have: [columns], of which place i of thread t belongs to column (t V + i) %
// columns.
template <int V, class Part>
__device__ const Part* joined(const Part (&mine)[V], int columns) {
  auto* parts = reinterpret_cast<Part*>(shared_memory());
  __syncthreads();  // before what was there is overwritten
  for (int v = 0; v < V; ++v) parts[threadIdx.x * V + v] = mine[v];
  for (int half = kThreads * V / columns / 2; half > 0; half /= 2) {
    __syncthreads();
    for (int i = threadIdx.x; i < half * columns; i += kThreads) join(parts[i], parts[i + half * columns]);
  }
  __syncthreads();
  return parts;
}

// What the threads of a block have, of its channels, to [groups][chunks][channels].
template <int V, class Part>
__device__ void put_partial(const Walk<V>& walk, const Cut& cut, const Part (&mine)[V], Part* partials) {
  const Part* parts = joined<V>(mine, cut.columns);
  Part* row = partials + (walk.group * cut.chunks + walk.chunk) * cut.channels;
  walk.each_channel([&](int channel, int column) { row[channel] = parts[column]; });
}

// Joins the chunks of kMergedChannels channels of a group; calls body(channel, cell of [groups][channels], part).
template <class Part, class Body>
__device__ void merge_chunks(const Part* partials, int channels, int chunks, const Body& body) {
  const unsigned tiles = (channels - 1) / kMergedChannels + 1;
  const int column = static_cast<int>(threadIdx.x) % kMergedChannels;
  const int row = static_cast<int>(threadIdx.x) / kMergedChannels;
  const int64_t group = blockIdx.x / tiles;
  const int channel = static_cast<int>(blockIdx.x % tiles) * kMergedChannels + column;
  Part mine[1] = {};
  if (channel < channels) {
#pragma unroll 4
    for (int k = row; k < chunks; k += kThreads / kMergedChannels)
      join(mine[0], partials[(group * chunks + k) * channels + channel]);
  }
  const Part* parts = joined<1>(mine, kMergedChannels);
  if (row == 0 && channel < channels) body(channel, group * channels + channel, parts[column]);
}

// The sum over groups of a channel.
__device__ inline float sum_of_groups(const float* values, const Cut& cut, int channel) {
  float sum = 0;
#pragma unroll 4
  for (int64_t group = 0; group < cut.groups; ++group) sum += values[group * cut.channels + channel];
  return sum;
}

}  // namespace mixfast::gpu::norm
