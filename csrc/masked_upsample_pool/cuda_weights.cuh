// SPDX-License-Identifier: MIT
// masked_upsample_pool on CUDA: the weights of one image, made by one block.
// Numerics  box weights as on the CPU, from the same functions (bilinear.h); mask sums in double, in a fixed order
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "common/bilinear.h"
#include "masked_upsample_pool/cpu.h"

namespace mixfast::gpu {

constexpr int kThreads = 128;
constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

// Where an image's weights come from: boxes, the raw sums of masks, or (both null) they are ready.
struct Source {
  const int64_t* boxes;
  const double* sums;
  int64_t images, height, width;
};

__device__ inline int64_t clamp(int64_t value, int64_t low, int64_t high) {
  return value < low ? low : (value > high ? high : value);
}

// The sum of `value` over the block, the same in every thread, added in a fixed order. All threads must call it.
__device__ inline double block_sum(double value) {
  __shared__ double partial[kThreads / kWarp];
  for (int step = kWarp / 2; step > 0; step /= 2) value += __shfl_xor_sync(kAllLanes, value, step);
  __syncthreads();
  if (threadIdx.x % kWarp == 0) partial[threadIdx.x / kWarp] = value;
  __syncthreads();
  double total = 0;
  for (int warp = 0; warp < kThreads / kWarp; ++warp) total += partial[warp];
  return total;
}

// Both weights of a position for a box; `total` and `box` are sums over an axis, times 2N (bilinear.h).
template <class A>
__device__ void weights_of_box(const Source& source, int64_t image, int64_t h, int64_t w, A* weights) {
  const int64_t* box = source.boxes + 4 * image;
  const double height = static_cast<double>(source.height), width = static_cast<double>(source.width);
  const double x0 = clamp(box[0], 0, source.width), x1 = clamp(box[2], 0, source.width);
  const double y0 = clamp(box[1], 0, source.height), y1 = clamp(box[3], 0, source.height);
  const double area = x1 > x0 && y1 > y0 ? (x1 - x0) * (y1 - y0) : 0;
  const double pixels = height * width;
  const double scale_inside = area > 0 ? 1 / (4 * pixels * area) : 0;
  const double scale_outside = area < pixels ? 1 / (4 * pixels * (pixels - area)) : 0;
  for (int64_t p = threadIdx.x; p < h * w; p += kThreads) {
    const Hat<double> hat_y = hat_of_cell(p / w, h, source.height), hat_x = hat_of_cell(p % w, w, source.width);
    const double total_y = interval_sum(hat_y, 0.0, height), total_x = interval_sum(hat_x, 0.0, width);
    const double box_y = interval_sum(hat_y, y0, y1), box_x = interval_sum(hat_x, x0, x1);
    const double inside = area > 0 ? box_y * box_x : 0;
    const double outside = area > 0 ? (total_y - box_y) * total_x + box_y * (total_x - box_x) : total_y * total_x;
    weights[p] = static_cast<A>(inside * scale_inside);
    weights[h * w + p] = static_cast<A>(outside * scale_outside);
  }
}

template <class A>
__device__ void weights_of_sums(const Source& source, int64_t image, int64_t positions, A* weights) {
  for (int side = 0; side < 2; ++side) {
    const double* sums = source.sums + (2 * image + side) * positions;
    double mine = 0;
    for (int64_t p = threadIdx.x; p < positions; p += kThreads) mine += sums[p];
    const double whole = block_sum(mine);
    const double scale = whole > 0 ? 1 / whole : 0;
    for (int64_t p = threadIdx.x; p < positions; p += kThreads)
      weights[side * positions + p] = static_cast<A>(sums[p] * scale);
  }
}

// Writes the weights [2, h, w] of an image. All threads of the block must call it, and wait before they read.
template <class A>
__device__ void make_weights(const Source& source, int64_t image, int64_t h, int64_t w, A* weights) {
  if (source.boxes) {
    weights_of_box(source, image, h, w, weights);
  } else {
    weights_of_sums(source, image, h * w, weights);
  }
}

struct Byte {
  uint8_t value;
};
__device__ inline double mask_value(Byte m) { return m.value ? 1.0 : 0.0; }
__device__ inline double mask_value(float m) { return m; }
__device__ inline double mask_value(double m) { return m; }
__device__ inline double mask_value(__half m) { return __half2float(m); }
__device__ inline double mask_value(__nv_bfloat16 m) { return __bfloat162float(m); }

// One block folds the mask rows that touch cell row i of an image, a tile of columns at a time: threads add up
// columns, then warps add columns up to cells. sums [images, 2, h, w].
template <class M>
__global__ void fold_mask(const M* masks, int64_t height, int64_t width, int64_t h, int64_t w, double* sums) {
  __shared__ double inside[kThreads], outside[kThreads];
  const int64_t image = blockIdx.x / h, i = blockIdx.x % h;
  const M* mask = masks + image * height * width;
  double* to = sums + (2 * image * h + i) * w;
  const Hat<double> hat = hat_of_cell(i, h, height);
  for (int64_t j = threadIdx.x; j < w; j += kThreads) to[j] = to[h * w + j] = 0;
  for (int64_t tile = 0; tile < width; tile += kThreads) {
    const int64_t x = tile + threadIdx.x;
    double in = 0, out = 0;
    for (int64_t y = static_cast<int64_t>(hat.rise); x < width && y < static_cast<int64_t>(hat.fall); ++y) {
      const Taps taps = taps_of_pixel(y, h, height);
      const double part = taps.cell == i ? 2 * height - taps.upper : taps.upper;
      const double m = mask_value(mask[y * width + x]);
      in += part * m;
      out += part * (1 - m);
    }
    inside[threadIdx.x] = in;
    outside[threadIdx.x] = out;
    __syncthreads();
    for (int64_t j = threadIdx.x / kWarp; j < w; j += kThreads / kWarp) {
      const Hat<double> across = hat_of_cell(j, w, width);
      const int64_t first = clamp(static_cast<int64_t>(across.rise), tile, tile + kThreads);
      const int64_t last = clamp(static_cast<int64_t>(across.fall), tile, tile + kThreads);
      double in_cell = 0, out_cell = 0;
      for (int64_t column = first + threadIdx.x % kWarp; column < last; column += kWarp) {
        const Taps taps = taps_of_pixel(column, w, width);
        const double part = taps.cell == j ? 2 * width - taps.upper : taps.upper;
        in_cell += part * inside[column - tile];
        out_cell += part * outside[column - tile];
      }
      for (int step = kWarp / 2; step > 0; step /= 2) {
        in_cell += __shfl_xor_sync(kAllLanes, in_cell, step);
        out_cell += __shfl_xor_sync(kAllLanes, out_cell, step);
      }
      if (threadIdx.x % kWarp == 0) {
        to[j] += in_cell;
        to[h * w + j] += out_cell;
      }
    }
    __syncthreads();
  }
}

}  // namespace mixfast::gpu
