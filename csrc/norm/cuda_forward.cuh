// SPDX-License-Identifier: MIT
// split_batch_norm on CUDA, forward: `moments` of each chunk, `merge_moments` of each group, `normalise`.
// Sweeps    x is read twice, a residual once, y written once; 16 bytes at a time where shape and addresses allow
#pragma once

#include <cmath>

#include "norm/cuda_walk.cuh"

namespace mixfast::gpu::norm {

template <class T>
struct MomentsCall {
  Cut cut;
  const T* x;
  Moments* partials;  // [groups][chunks][channels]
};

// What a thread has of its channels, which are equally many numbers of each.
template <int V>
struct Gathered {
  float count = 0, mean[V] = {}, square[V] = {};

  // Joins a few positions to those before: their own mean first, squares about that.
  template <class T, int U>
  __device__ void add(const Batch<T, V, U>& x) {
    const float share = __fdividef(U, count + U), both = count * share;
    for (int v = 0; v < V; ++v) {
      float sum = 0, squares = 0;
      for (int u = 0; u < U; ++u) sum += as_computed(x.at[u].values[v]);
      const float own = sum / U, apart = own - mean[v];
      for (int u = 0; u < U; ++u) {
        const float difference = as_computed(x.at[u].values[v]) - own;
        squares += difference * difference;
      }
      mean[v] += apart * share;
      square[v] += squares + apart * (apart * both);
    }
    count += U;
  }
};

template <class T, int V>
__global__ void __launch_bounds__(kThreads) moments(const __grid_constant__ MomentsCall<T> call) {
  Walk<V> walk(call.cut);
  Gathered<V> gathered;
  walk.each([&](const auto& cells) { gathered.add(read<V>(call.x, cells)); });
  Moments mine[V];
  for (int v = 0; v < V; ++v) mine[v] = {gathered.count, gathered.mean[v], gathered.square[v]};
  put_partial(walk, call.cut, mine, call.partials);
}

struct MergeMomentsCall {
  int channels, chunks;
  float numbers, eps;  // of a channel in a group
  const Moments* partials;
  float *means, *inverses, *variances;  // [groups][channels]; 1 / sqrt(variance + eps); unbiased
};

__global__ void __launch_bounds__(kThreads) merge_moments(const __grid_constant__ MergeMomentsCall call) {
  merge_chunks(call.partials, call.channels, call.chunks, [&](int, int64_t cell, const Moments& merged) {
    call.means[cell] = merged.mean;
    call.inverses[cell] = 1 / std::sqrt(merged.square / call.numbers + call.eps);
    call.variances[cell] = merged.square / (call.numbers - 1);
  });
}

template <class T>
struct NormaliseCall {
  Cut cut;
  const T *x, *residual;
  T* y;
  const float *weight, *bias, *means, *inverses, *variances;
  float *running_mean, *running_var;  // null: not wanted
  float kept, moved;                  // shares of the former and the new statistics
  bool relu;
};

// y of a few positions, rounded to T after norm, sum and ReLU; not a number stays so.
template <bool kAdd, class T, int V, int U>
__device__ void finish(const NormaliseCall<T>& call, const Cells<U>& cells, const float (&factors)[3][V]) {
  Batch<T, V, U> batch = read<V>(call.x, cells), added;
  if constexpr (kAdd) added = read<V>(call.residual, cells);
  for (int u = 0; u < U; ++u) {
    for (int v = 0; v < V; ++v) {
      T& value = batch.at[u].values[v];
      put(value, (as_computed(value) - factors[0][v]) * factors[1][v] + factors[2][v]);
      if constexpr (kAdd) put(value, as_computed(value) + as_computed(added.at[u].values[v]));
      if (call.relu && as_computed(value) < 0) put(value, 0);
    }
  }
  write(call.y, cells, batch);
}

// The first block of a tile of channels moves their running statistics.
template <class T, int V, bool kAdd>
__global__ void __launch_bounds__(kThreads) normalise(const __grid_constant__ NormaliseCall<T> call) {
  Walk<V> walk(call.cut);
  float factors[3][V];
  walk.share(factors, [&](int channel, float (&made)[3]) {
    const int64_t cell = walk.group * call.cut.channels + channel;
    made[0] = call.means[cell], made[1] = call.inverses[cell] * call.weight[channel], made[2] = call.bias[channel];
  });
  walk.each([&](const auto& cells) { finish<kAdd>(call, cells, factors); });
  if (call.running_mean == nullptr || walk.chunk != 0 || walk.group != 0) return;
  walk.each_channel([&](int channel, int) {
    const float share = call.moved / static_cast<float>(call.cut.groups);
    float &running_mean = call.running_mean[channel], &running_var = call.running_var[channel];
    running_mean = running_mean * call.kept + sum_of_groups(call.means, call.cut, channel) * share;
    running_var = running_var * call.kept + sum_of_groups(call.variances, call.cut, channel) * share;
  });
}

}  // namespace mixfast::gpu::norm
