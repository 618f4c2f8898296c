// SPDX-License-Identifier: MIT
// split_batch_norm on CUDA, backward: `products` of each chunk, `merge_products` of each group, `gradient`.
// Sweeps    dy, x, and y after a ReLU, are read twice, dx written once. If the residual wants its gradient g, that is
//           written by `products` and read by `gradient` in place of dy and y
#pragma once

#include "norm/cuda_walk.cuh"

namespace mixfast::gpu::norm {

// g = dy, but zero where y <= 0: as torch has it, not a number stops no gradient.
template <int V, bool kMask, class T, int U>
__device__ Batch<T, V, U> arriving(const T* dy, const T* y, const Cells<U>& cells) {
  Batch<T, V, U> batch = read<V>(dy, cells);
  if constexpr (kMask) {
    const auto results = read<V>(y, cells);
    for (int u = 0; u < U; ++u) {
      for (int v = 0; v < V; ++v) {
        if (as_computed(results.at[u].values[v]) <= 0) put(batch.at[u].values[v], 0);
      }
    }
  }
  return batch;
}

template <class T>
struct ProductsCall {
  Cut cut;
  const T *dy, *x, *y;
  T* masked;  // where g goes
  const float* means;
  Sums* partials;  // [groups][chunks][channels]
};

// Sums of g and of g (x - mean). Unless a number of blocks is asked for, the assembler spills registers to fit more.
template <class T, int V, bool kMask, bool kWrite>
__global__ void __launch_bounds__(kThreads, 2) products(const __grid_constant__ ProductsCall<T> call) {
  Walk<V> walk(call.cut);
  float mean[1][V];
  walk.share(mean,
             [&](int channel, float (&made)[1]) { made[0] = call.means[walk.group * call.cut.channels + channel]; });
  Sums mine[V] = {};
  walk.each([&](const auto& cells) {
    const auto x = read<V>(call.x, cells);
    const auto g = arriving<V, kMask>(call.dy, call.y, cells);
    if constexpr (kWrite) write(call.masked, cells, g);
    for (int v = 0; v < V; ++v) {
      for (int u = 0; u < g.kSize; ++u) {
        const float grad = as_computed(g.at[u].values[v]);
        mine[v].plain += grad;
        mine[v].weighted += grad * (as_computed(x.at[u].values[v]) - mean[0][v]);
      }
    }
  });
  put_partial(walk, call.cut, mine, call.partials);
}

struct MergeProductsCall {
  int channels, chunks;
  const Sums* partials;
  const float* inverses;
  float *plain, *weighted;  // [groups][channels], sums of g and of g h
};

__global__ void __launch_bounds__(kThreads) merge_products(const __grid_constant__ MergeProductsCall call) {
  merge_chunks(call.partials, call.channels, call.chunks, [&](int, int64_t cell, const Sums& merged) {
    call.plain[cell] = merged.plain;
    call.weighted[cell] = merged.weighted * call.inverses[cell];
  });
}

template <class T>
struct GradientCall {
  Cut cut;
  const T *dy, *x, *y;
  T* dx;
  const float *weight, *means, *inverses, *plain, *weighted;
  float numbers;             // of a channel in a group
  float *d_weight, *d_bias;  // [channels]
};

// dx = weight inverse (g - avg g - h avg(g h)). The first block of a tile of channels writes the parameters' gradients.
template <class T, int V, bool kMask>
__global__ void __launch_bounds__(kThreads) gradient(const __grid_constant__ GradientCall<T> call) {
  Walk<V> walk(call.cut);
  float factors[4][V];  // mean, scale, shift, slope
  walk.share(factors, [&](int channel, float (&made)[4]) {
    const int64_t cell = walk.group * call.cut.channels + channel;
    const float inverse = call.inverses[cell];
    made[0] = call.means[cell];
    made[1] = inverse * call.weight[channel];
    made[2] = -call.plain[cell] / call.numbers;
    made[3] = -inverse * call.weighted[cell] / call.numbers;
  });
  walk.each([&](const auto& cells) {
    auto x = read<V>(call.x, cells);
    const auto g = arriving<V, kMask>(call.dy, call.y, cells);
    for (int u = 0; u < g.kSize; ++u) {
      for (int v = 0; v < V; ++v) {
        T& value = x.at[u].values[v];
        const float grad = as_computed(g.at[u].values[v]) + factors[2][v];
        put(value, factors[1][v] * (grad + (as_computed(value) - factors[0][v]) * factors[3][v]));
      }
    }
    write(call.dx, cells, x);
  });
  if (walk.chunk != 0 || walk.group != 0) return;
  walk.each_channel([&](int channel, int) {
    call.d_weight[channel] = sum_of_groups(call.weighted, call.cut, channel);
    call.d_bias[channel] = sum_of_groups(call.plain, call.cut, channel);
  });
}

}  // namespace mixfast::gpu::norm
