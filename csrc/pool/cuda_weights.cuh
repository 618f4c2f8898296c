// SPDX-License-Identifier: MIT
// masked_upsample_pool on CUDA: the weights of one image, made by one block in shared memory.
// Numerics  box weights as on the CPU, from the same functions (bilinear.h), in double up to the last rounding
#pragma once

#include "common/bilinear.h"
#include "pool/cuda_types.cuh"

namespace mixfast::gpu {

// Where the weights of an image come from: boxes, the sums of masks (cuda_mask.cuh), or weights as they are.
template <class A>
struct Source {
  const int64_t* boxes;
  const A* sums;
  const A* ready;
  int64_t images, height, width;
};

// Positions [first, first + count) of a map, and the rows and columns of it that they touch.
struct Span {
  int first, count;
  int row, rows;        // from row `row`
  int column, columns;  // from column `column`, round to the first column after the last
};

__device__ inline Span span_of(int first, int positions, int chunk, int w) {
  Span span;
  span.first = first;
  span.count = positions - first < chunk ? positions - first : chunk;
  span.row = first / w;
  span.rows = (first + span.count - 1) / w - span.row + 1;
  span.columns = span.count < w ? span.count : w;
  span.column = span.columns == w ? 0 : first % w;
  return span;
}

struct Scales {
  double inside, outside;
};

__device__ inline int64_t clamp(int64_t value, int64_t low, int64_t high) {
  return value < low ? low : (value > high ? high : value);
}

// The sums of an axis over the box's interval and over all pixels, times 2N (bilinear.h).
struct AxisSum {
  double box, whole;
};

// These two are called, not inlined: divisions need registers that the loops over maps should have.
[[gnu::noinline]] __device__ inline AxisSum axis_sum(int cell, int cells, int64_t pixels, int64_t from, int64_t to) {
  const Hat<double> hat = hat_of_cell(cell, cells, pixels);
  const double low = static_cast<double>(clamp(from, 0, pixels)), high = static_cast<double>(clamp(to, 0, pixels));
  return {interval_sum(hat, low, high), interval_sum(hat, 0.0, static_cast<double>(pixels))};
}

[[gnu::noinline]] __device__ inline double inverse_or_zero(double value) { return value > 0 ? 1 / value : 0; }

template <class A>
__device__ Scales scales_of_box(const Source<A>& source, const int64_t* box) {
  const int64_t wide = clamp(box[2], 0, source.width) - clamp(box[0], 0, source.width);
  const int64_t high = clamp(box[3], 0, source.height) - clamp(box[1], 0, source.height);
  const double pixels = static_cast<double>(source.height) * static_cast<double>(source.width);
  const double area = wide > 0 && high > 0 ? static_cast<double>(wide) * static_cast<double>(high) : 0;
  return {inverse_or_zero(4 * pixels * area), inverse_or_zero(4 * pixels * (pixels - area))};
}

// Room for what a span needs of an image before its weights.
struct Scratch {
  Scales* scales;
  AxisSum* axes;  // rows, then columns
};

__device__ inline Scratch scratch_at(unsigned char* shared) {
  return {reinterpret_cast<Scales*>(shared), reinterpret_cast<AxisSum*>(shared + sizeof(Scales))};
}

template <class A>
__device__ void weights_of_box(const Source<A>& source, const int64_t* box, int h, int w, const Span& span,
                               const Scratch& scratch, Pair<A>* weights) {
#pragma unroll 1
  for (int e = threadIdx.x; e < span.rows + span.columns; e += kThreads) {
    const int column = (span.column + e - span.rows) % w;
    scratch.axes[e] = e < span.rows ? axis_sum(span.row + e, h, source.height, box[1], box[3])
                                    : axis_sum(column, w, source.width, box[0], box[2]);
  }
  if (threadIdx.x == kThreads - 1) *scratch.scales = scales_of_box(source, box);  // the warp with least to do above
  __syncthreads();
  const Scales scales = *scratch.scales;
  const int start = span.first % w;
#pragma unroll 1
  for (int q = threadIdx.x; q < span.count; q += kThreads) {
    const AxisSum y = scratch.axes[(start + q) / w];
    const AxisSum x = scratch.axes[span.rows + (span.columns == w ? (start + q) % w : q)];
    const double inside = scales.inside > 0 ? y.box * x.box : 0;
    const double outside = scales.inside > 0 ? (y.whole - y.box) * x.whole + y.box * (x.whole - x.box)  //
                                             : y.whole * x.whole;
    weights[q] = {static_cast<A>(inside * scales.inside), static_cast<A>(outside * scales.outside)};
  }
}

// An image's sums [2, 2, h, w + 1]: inside and outside the mask; what the pixel rows between the centres of cell rows i
// and i + 1 give to row i, then to row i + 1; last in each row, its total. A warp must call it.
template <class A>
__device__ Scales scales_of_sums(const A* sums, int h, int w) {
  const int64_t stride = w + 1, side = 2 * h * stride;
  double inside = 0, outside = 0;
#pragma unroll 1
  for (int i = threadIdx.x % kWarp; i < 2 * h; i += kWarp) {
    inside += sums[i * stride + w];
    outside += sums[side + i * stride + w];
  }
  for (int step = kWarp / 2; step > 0; step /= 2) {
    inside += __shfl_xor_sync(kAllLanes, inside, step);
    outside += __shfl_xor_sync(kAllLanes, outside, step);
  }
  return {inverse_or_zero(inside), inverse_or_zero(outside)};
}

template <class A>
__device__ void weights_of_sums(const A* sums, int h, int w, const Span& span, const Scratch& scratch,
                                Pair<A>* weights) {
  if (threadIdx.x / kWarp == 0) {
    const Scales scales = scales_of_sums(sums, h, w);
    if (threadIdx.x == 0) *scratch.scales = scales;
  }
  __syncthreads();
  const Scales scales = *scratch.scales;
  const int64_t stride = w + 1, side = 2 * h * stride;
#pragma unroll 1
  for (int q = threadIdx.x; q < span.count; q += kThreads) {
    const int i = (span.first + q) / w, j = (span.first + q) % w;
    const A *lower = sums + i * stride + j, *upper = lower + (h - 1) * stride;
    double inside = lower[0], outside = lower[side];
    if (i > 0) {
      inside += upper[0];
      outside += upper[side];
    }
    weights[q] = {static_cast<A>(inside * scales.inside), static_cast<A>(outside * scales.outside)};
  }
}

// Writes the weights of a span. All threads of the block must call it, and wait before they read.
template <class A>
__device__ void make_weights(const Source<A>& source, int64_t image, int h, int w, const Span& span,
                             const Scratch& scratch, Pair<A>* weights) {
  if (source.boxes) {
    weights_of_box(source, source.boxes + 4 * image, h, w, span, scratch, weights);
  } else if (source.sums) {
    weights_of_sums(source.sums + image * 4 * h * (w + 1), h, w, span, scratch, weights);
  } else {
    const int positions = h * w;
    const A* ready = source.ready + image * 2 * positions + span.first;
#pragma unroll 2
    for (int q = threadIdx.x; q < span.count; q += kThreads) weights[q] = {ready[q], ready[positions + q]};
  }
}

// Writes the weights of a span into those of an image [2, h, w].
template <class A>
__device__ void save_weights(const Pair<A>* weights, const Span& span, int positions, A* to) {
#pragma unroll 1
  for (int q = threadIdx.x; q < span.count; q += kThreads) {
    to[span.first + q] = weights[q].inside;
    to[positions + span.first + q] = weights[q].outside;
  }
}

// A block for each image and chunk of positions; weights [images, 2, h, w].
template <class A>
__global__ void __launch_bounds__(kThreads)
    weights_only(Source<A> source, int h, int w, int chunk, int64_t scratch_bytes, A* weights) {
  unsigned char* shared = shared_memory();
  const Scratch scratch = scratch_at(shared);
  auto* pairs = reinterpret_cast<Pair<A>*>(shared + scratch_bytes);
  const int positions = h * w, chunks = (positions - 1) / chunk + 1;
  const int64_t image = blockIdx.x / chunks;
  const Span span = span_of(static_cast<int>(blockIdx.x % chunks) * chunk, positions, chunk, w);
  make_weights(source, image, h, w, span, scratch, pairs);
  __syncthreads();
  save_weights(pairs, span, positions, weights + image * 2 * positions);
}

}  // namespace mixfast::gpu
