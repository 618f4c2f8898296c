// SPDX-License-Identifier: MIT
// masked_upsample_pool on CUDA, forward: both weighted sums of every channel of a tile of one image, by a block.
// Layout    `pool` for contiguous maps, `pool_last` for channels last; each element is read once, where it lies
// Numerics  sums in float (double for double), in an order fixed by shape and alignment: same bits on every run
#pragma once

#include "common/ptx.cuh"
#include "pool/cuda_plan.h"
#include "pool/cuda_weights.cuh"

namespace mixfast::gpu {

// Blocks at once on a multiprocessor, at least: what bounds the registers of a thread.
template <class T>
constexpr int kPoolBlocks = sizeof(T) == 8 ? 4 : 5;

template <class T>
struct PoolCall {
  const T* features;
  int64_t batch;
  int channels, h, w;
  Source<Sum<T>> source;
  PoolPlan plan;
  Sum<T>* weights;  // to be written if they are made here, [images, 2, h, w]
  T *inside, *outside;
};

// The image and channels of a block, and its shared memory.
template <class T>
struct Tile {
  int64_t image, channel;  // `channel`: the first one, counted over all images
  int first, count, positions;
  unsigned char* maps;
  Pair<Sum<T>>* weights;
};

template <class T>
__device__ Tile<T> tile_of(const PoolCall<T>& call) {
  const PoolPlan& plan = call.plan;
  Tile<T> tile;
  tile.image = blockIdx.x / plan.tiles;
  tile.first = static_cast<int>(blockIdx.x % plan.tiles) * plan.channels;
  tile.count = call.channels - tile.first < plan.channels ? call.channels - tile.first : plan.channels;
  tile.channel = tile.image * call.channels + tile.first;
  tile.positions = call.h * call.w;
  tile.maps = shared_memory();
  tile.weights = reinterpret_cast<Pair<Sum<T>>*>(tile.maps + plan.weights);
  return tile;
}

// The weights of a span in shared memory; saved by one block of each image. Waits for the thread's copies, and ends
// with a barrier.
template <class T>
__device__ void weights_of_tile(const PoolCall<T>& call, const Tile<T>& tile, const Span& span) {
  const int64_t image = call.source.images == 1 ? 0 : tile.image;
  make_weights(call.source, image, call.h, call.w, span, scratch_at(tile.maps + call.plan.scratch), tile.weights);
  cp_async_wait<0>();
  __syncthreads();
  if (!call.source.ready && tile.first == 0 && image == tile.image)
    save_weights(tile.weights, span, tile.positions, call.weights + image * 2 * tile.positions);
}

// Where start_copy() puts an element: its place within 16 bytes stays.
template <class T>
__device__ const T* copy_of(const T* from, const unsigned char* shared) {
  return reinterpret_cast<const T*>(shared + reinterpret_cast<uintptr_t>(from) % kVectorBytes);
}

// Starts to copy elements [from, from + count) to shared memory, 16 bytes at a time however they are aligned. Reads
// nothing outside [begin, end).
template <class T>
__device__ void start_copy(const T* begin, const T* end, const T* from, int count, unsigned char* shared) {
  const int shift = static_cast<int>(reinterpret_cast<uintptr_t>(from) % kVectorBytes);
  const int bytes = shift + count * static_cast<int>(sizeof(T));
  const auto* base = reinterpret_cast<const unsigned char*>(from) - shift;
  const auto* lowest = reinterpret_cast<const unsigned char*>(begin);
  const auto* highest = reinterpret_cast<const unsigned char*>(end);
#pragma unroll 2
  for (int at = threadIdx.x * kVectorBytes; at < bytes; at += kThreads * kVectorBytes) {
    if (base + at >= lowest && base + at + kVectorBytes <= highest) {
      cp_async_16(shared + at, base + at, true);
      continue;
    }
    for (int one = at < shift ? shift : at; one < at + kVectorBytes && one < bytes; one += sizeof(T))
      *reinterpret_cast<T*>(shared + one) = *reinterpret_cast<const T*>(base + one);
  }
}

// Adds a lane's share of a span to the sums of several channels.
template <class T, int V, int kLanes, int kChannels>
__device__ void add_channels(const T* const (&maps)[kChannels], const Pair<Sum<T>>* weights, int count, int lane,
                             Pair<Sum<T>> (&sums)[kChannels]) {
#pragma unroll(V == 1 ? 2 : 1)
  for (int at = lane * V; at < count; at += kLanes * V) {
    Vector<T, V> values[kChannels];
    for (int c = 0; c < kChannels; ++c) values[c] = vector_at<T, V>(maps[c] + at);
    for (int v = 0; v < V; ++v) {
      const Pair<Sum<T>> weight = weights[at + v];
      for (int c = 0; c < kChannels; ++c) add_product(sums[c], as_computed(values[c].values[v]), weight);
    }
  }
}

// Adds up over neighbouring threads; an even one writes the inside of channel c, if it exists, the next the outside.
template <class T, int kLanes>
__device__ void finish_channel(const PoolCall<T>& call, const Pair<Sum<T>>& sums, int lane, int64_t c, bool exists) {
  const bool odd = lane % 2;
  Sum<T> mine = odd ? sums.outside : sums.inside;
  mine += __shfl_xor_sync(kAllLanes, odd ? sums.inside : sums.outside, 1);
  for (int step = 2; step < kLanes; step *= 2) mine += __shfl_xor_sync(kAllLanes, mine, step);
  if (exists && lane < 2) put(odd ? call.outside[c] : call.inside[c], mine);
}

// Contiguous maps. All of a tile is under way to shared memory while the weights are made; then kLanes threads share a
// channel. Maps too long for that come in chunks, and the tile is then one pass.
template <class T, int V, int kLanes>
__global__ void __launch_bounds__(kThreads, kPoolBlocks<T>) pool(const __grid_constant__ PoolCall<T> call) {
  constexpr int kChannels = V == 1 ? kScalarChannels : kVectorChannels, kSlots = kThreads / kLanes;
  const PoolPlan& plan = call.plan;
  const Tile<T> tile = tile_of(call);
  const T *begin = call.features, *end = begin + call.batch * call.channels * tile.positions;
  const T* from = begin + tile.channel * tile.positions;
  const int lane = threadIdx.x % kLanes, slot = threadIdx.x / kLanes;
  const bool whole = plan.row_bytes == 0;
  Pair<Sum<T>> sums[kChannels] = {};
  for (int start = 0; start < tile.positions; start += plan.chunk) {
    const Span span = span_of(start, tile.positions, plan.chunk, call.w);
    if (start > 0) __syncthreads();  // before the former chunk is overwritten
    if (whole) {
      start_copy(begin, end, from, tile.count * tile.positions, tile.maps);
    } else {
      for (int c = 0; c < tile.count; ++c)
        start_copy(begin, end, from + int64_t{c} * tile.positions + start, span.count, tile.maps + c * plan.row_bytes);
    }
    cp_async_commit();
    weights_of_tile(call, tile, span);
    for (int base = 0; base < tile.count; base += kSlots * kChannels) {
      const T* maps[kChannels];
      for (int i = 0; i < kChannels; ++i) {
        const int mine = base + i * kSlots + slot, c = mine < tile.count ? mine : tile.count - 1;
        maps[i] = whole ? copy_of(from, tile.maps) + c * tile.positions
                        : copy_of(from + int64_t{c} * tile.positions + start, tile.maps + c * plan.row_bytes);
        if (whole) sums[i] = {};
      }
      add_channels<T, V, kLanes>(maps, tile.weights, span.count, lane, sums);
      if (start + span.count < tile.positions) continue;
      for (int i = 0; i < kChannels; ++i) {
        const int c = base + i * kSlots + slot;
        finish_channel<T, kLanes>(call, sums[i], lane, tile.channel + c, c < tile.count);
      }
    }
  }
}

// A thread's positions `at`, `at + step`, ... of `count`, channels `channels` elements apart, taken one by one with
// kAhead of them under way: 16-byte vectors through shared memory that is the thread's own, others in registers.
template <class T, int V>
class Positions {
 public:
  __device__ Positions(const T* maps, int64_t channels, int at, int step, int count, unsigned char* shared)
      : maps_(maps), channels_(channels), at_(at), step_(step), count_(count) {
    held_ = reinterpret_cast<Vector<T, V>*>(shared) + threadIdx.x;
    for (int n = 0; n < kAhead; ++n) fetch(n);
  }

  // Adds position n times its weight.
  __device__ void add(int n, const Pair<Sum<T>>& weight, Pair<Sum<T>> (&sums)[V]) {
    cp_async_wait<kAhead - 1>();
    const Vector<T, V> values = held_[n % kAhead * kThreads];
    for (int v = 0; v < V; ++v) add_product(sums[v], as_computed(values.values[v]), weight);
    fetch(n + kAhead);
  }

 private:
  __device__ void fetch(int n) {
    const int position = at_ + n * step_;
    if (position < count_) {
      const T* from = maps_ + position * channels_;
      Vector<T, V>* to = held_ + n % kAhead * kThreads;
      if (sizeof(Vector<T, V>) == kVectorBytes) {
        cp_async_16(to, from, true);
      } else {
        *to = vector_at<T, V>(from);
      }
    }
    cp_async_commit();
  }

  const T* maps_;
  int64_t channels_;
  int at_, step_, count_;
  Vector<T, V>* held_;
};

// Channels last. A thread sums V neighbouring channels over every so many positions; then the rows of threads are
// added up in order.
template <class T, int V>
__global__ void __launch_bounds__(kThreads, kPoolBlocks<T>) pool_last(const __grid_constant__ PoolCall<T> call) {
  const PoolPlan& plan = call.plan;
  const Tile<T> tile = tile_of(call);
  const int lane = threadIdx.x % plan.lanes, row = threadIdx.x / plan.lanes, rows = kThreads / plan.lanes;
  Pair<Sum<T>> sums[V] = {};
  for (int start = 0; start < tile.positions; start += plan.chunk) {
    const Span span = span_of(start, tile.positions, plan.chunk, call.w);
    const int count = lane * V < tile.count ? span.count : 0;
    const T* maps = call.features + (tile.image * tile.positions + start) * call.channels + tile.first + lane * V;
    Positions<T, V> positions(maps, call.channels, row, rows, count, tile.maps);
    if (start > 0) __syncthreads();  // before the former weights are overwritten
    weights_of_tile(call, tile, span);
#pragma unroll 2
    for (int n = 0; row + n * rows < count; ++n) positions.add(n, tile.weights[row + n * rows], sums);
  }
  __syncthreads();  // before what the positions were held in is overwritten
  auto* partial = reinterpret_cast<Pair<Sum<T>>*>(tile.maps);
  for (int v = 0; v < V; ++v) partial[threadIdx.x * V + v] = sums[v];
  __syncthreads();
  for (int c = threadIdx.x; c < tile.count; c += kThreads) {
    Pair<Sum<T>> total = {};
#pragma unroll 2
    for (int r = 0; r < rows; ++r) {
      total.inside += partial[r * plan.lanes * V + c].inside;
      total.outside += partial[r * plan.lanes * V + c].outside;
    }
    put(call.inside[tile.channel + c], total.inside);
    put(call.outside[tile.channel + c], total.outside);
  }
}

}  // namespace mixfast::gpu
