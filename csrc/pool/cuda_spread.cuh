// SPDX-License-Identifier: MIT
// masked_upsample_pool on CUDA, backward: grad[c, p] = grad_inside[c] inside[p] + grad_outside[c] outside[p].
// Layout    `spread` for contiguous maps, `spread_last` for channels last; each element is written once, 16 bytes at a
//           time, and nothing else is read but the few weights and gradients
#pragma once

#include "common/ptx.cuh"
#include "pool/cuda_plan.h"
#include "pool/cuda_types.cuh"

namespace mixfast::gpu {

constexpr int kSpreadThreads = 256;

template <class T>
struct SpreadCall {
  const T *grad_inside, *grad_outside;
  int channels, positions;
  int64_t images;
  const Sum<T>* weights;
  SpreadPlan plan;
  T* grad;
};

template <class T>
__device__ const Sum<T>* weights_of_image(const SpreadCall<T>& call, int64_t image) {
  return call.weights + (call.images == 1 ? 0 : image) * 2 * call.positions;
}

// Writes the elements of a vector that lie in [0, size), counted from `to`; `at` is where the vector begins.
template <class T, int V>
__device__ void store_within(T* to, int64_t at, int64_t size, const Vector<T, V>& vector) {
  if constexpr (V * sizeof(T) == 16) {
    if (at >= 0 && at + V <= size) {
      store_16(to + at, vector);
      return;
    }
  }
  for (int v = 0; v < V; ++v) {
    if (at + v >= 0 && at + v < size) to[at + v] = vector.values[v];
  }
}

// A block writes a tile of channels of an image, an interval of memory, in vectors aligned to their size. Their places
// in the maps repeat after plan.period channels, so a thread keeps to one place (a column) and the weights it needs
// there; its elements belong to channel c and, behind the end of that map, to c + 1.
template <class T, int V>
__global__ void __launch_bounds__(kSpreadThreads) spread(const __grid_constant__ SpreadCall<T> call) {
  const SpreadPlan& plan = call.plan;
  const int64_t image = blockIdx.x / plan.tiles;
  const int first = static_cast<int>(blockIdx.x % plan.tiles) * plan.channels;
  const int count = call.channels - first < plan.channels ? call.channels - first : plan.channels;
  const int64_t offset = image * call.channels + first, size = int64_t{count} * call.positions;
  T* to = call.grad + offset * call.positions;
  const T *in = call.grad_inside + offset, *out = call.grad_outside + offset;
  const Sum<T>* weights = weights_of_image(call, image);
  const int shift = static_cast<int>(reinterpret_cast<uintptr_t>(to) / sizeof(T) % V);
  const int streams = plan.columns < kSpreadThreads ? kSpreadThreads / plan.columns : 1;
  for (int unit = threadIdx.x; unit < plan.columns * streams; unit += kSpreadThreads) {
    const int begin = unit % plan.columns * V - shift;  // in the first period
    const int above = begin < 0 ? -1 : begin / call.positions, start = begin - above * call.positions;
    Pair<Sum<T>> mine[V];
    for (int v = 0; v < V; ++v) {
      const int p = start + v < call.positions ? start + v : start + v - call.positions;
      mine[v] = {weights[p], weights[call.positions + p]};
    }
#pragma unroll 2
    for (int row = unit / plan.columns * plan.period; row + above < count; row += streams * plan.period) {
      const int here = row + above;
      const bool next = start + V > call.positions && here + 1 < count;
      Pair<Sum<T>> grads[2] = {};
      if (here >= 0) grads[0] = {as_computed(in[here]), as_computed(out[here])};
      if (next) grads[1] = {as_computed(in[here + 1]), as_computed(out[here + 1])};
      Vector<T, V> vector;
      for (int v = 0; v < V; ++v) {
        const bool behind = start + v >= call.positions;
        put(vector.values[v], (behind ? grads[1].inside : grads[0].inside) * mine[v].inside +
                                  (behind ? grads[1].outside : grads[0].outside) * mine[v].outside);
      }
      store_within(to, int64_t{row} * call.positions + begin, size, vector);
    }
  }
}

// A thread writes V neighbouring channels at every so many positions.
template <class T, int V>
__global__ void __launch_bounds__(kSpreadThreads, 3) spread_last(const __grid_constant__ SpreadCall<T> call) {
  const SpreadPlan& plan = call.plan;
  const int across = (call.channels - 1) / plan.channels + 1;
  const int64_t image = blockIdx.x / plan.tiles;
  const int tile = static_cast<int>(blockIdx.x % plan.tiles);
  const int c = tile % across * plan.channels + static_cast<int>(threadIdx.x) % plan.lanes * V;
  const int first = tile / across * plan.positions, row = threadIdx.x / plan.lanes;
  const int last = call.positions - first < plan.positions ? call.positions : first + plan.positions;
  if (c >= call.channels) return;
  const auto in = vector_at<T, V>(call.grad_inside + image * call.channels + c);
  const auto out = vector_at<T, V>(call.grad_outside + image * call.channels + c);
  const Sum<T>* weights = weights_of_image(call, image);
#pragma unroll 4
  for (int p = first + row; p < last; p += kSpreadThreads / plan.lanes) {
    const Sum<T> inside = weights[p], outside = weights[call.positions + p];
    Vector<T, V> vector;
    for (int v = 0; v < V; ++v)
      put(vector.values[v], as_computed(in.values[v]) * inside + as_computed(out.values[v]) * outside);
    *reinterpret_cast<Vector<T, V>*>(call.grad + (image * call.positions + p) * call.channels + c) = vector;
  }
}

}  // namespace mixfast::gpu
