// SPDX-License-Identifier: MIT
// masked_upsample_pool on CUDA: masks folded to cells, each pixel read once.
// Numerics  byte masks in integers up to the sums of a cell, so that what is missing to the whole is exact; other
//           masks in double, with sums of 1 - m besides; rounded once, when they are written
#pragma once

#include "common/bilinear.h"
#include "pool/cuda_types.cuh"

namespace mixfast::gpu {

constexpr int kFoldThreads = 256;  // at most; fewer for narrow masks
constexpr int kFoldColumns = 4;    // of a thread
constexpr int kFoldRows = 64;      // whose sums of bytes fit 32 bits, for masks up to 2^24 pixels high

struct Byte {
  uint8_t value;
};
__device__ inline double mask_value(float m) { return m; }
__device__ inline double mask_value(double m) { return m; }
__device__ inline double mask_value(__half m) { return __half2float(m); }
__device__ inline double mask_value(__nv_bfloat16 m) { return __bfloat162float(m); }

// What some pixel rows give to the cell rows below and above them, times 2N: a column's sums of m (and of 1 - m).
template <class M>
struct ColumnSums {
  static constexpr int kKinds = 4;  // inside lower, inside upper, outside lower, outside upper
  double sums[kKinds] = {};
  __device__ void add(M value, uint32_t lower, uint32_t upper) {
    const double m = mask_value(value);
    sums[0] += lower * m;
    sums[1] += upper * m;
    sums[2] += lower * (1 - m);
    sums[3] += upper * (1 - m);
  }
  __device__ void flush() {}
  __device__ double of(int kind) const { return sums[kind]; }
};

template <>
struct ColumnSums<Byte> {
  static constexpr int kKinds = 2;
  uint64_t sums[kKinds] = {};
  uint32_t recent[kKinds] = {};
  __device__ void add(Byte value, uint32_t lower, uint32_t upper) {
    recent[0] += value.value ? lower : 0;
    recent[1] += value.value ? upper : 0;
  }
  __device__ void flush() {
    for (int kind = 0; kind < kKinds; ++kind) {
      sums[kind] += recent[kind];
      recent[kind] = 0;
    }
  }
  __device__ double of(int kind) const { return static_cast<double>(sums[kind]); }
};

// The pixels whose taps are `cell` and the one after it (bilinear.h), and those taps without a division. Parts are
// below 2^25 for as many pixels as bilinear.h allows.
struct Run {
  int64_t first, last;
  int t, step, whole;  // of pixel `first`: parts of the upper cell, before they are clamped to [0, 2N)
  bool border;         // there is no upper cell
  __device__ int upper(int64_t pixel) const {
    const int parts = t + static_cast<int>(pixel - first) * step;
    return border || parts < 0 ? 0 : parts;
  }
  // Sums over the run's pixels.
  __device__ double upper_total() const {
    const int64_t skipped = t < 0 ? (step - 1 - t) / step : 0, count = last - first - skipped;
    if (border || count <= 0) return 0;
    return static_cast<double>(count * (t + skipped * step) + step * (count * (count - 1) / 2));
  }
  __device__ double lower_total() const { return static_cast<double>((last - first) * whole) - upper_total(); }
};

__device__ inline int64_t run_start(int cell, int cells, int64_t pixels) {
  return cell == 0 ? 0 : cell >= cells ? pixels : static_cast<int64_t>(first_pixel_at(2 * cell + 1, cells, pixels));
}

__device__ inline Run run_of_cell(int cell, int cells, int64_t pixels) {
  Run run;
  run.first = run_start(cell, cells, pixels);
  run.last = run_start(cell + 1, cells, pixels);
  run.step = 2 * cells;
  run.whole = static_cast<int>(2 * pixels);
  run.t = static_cast<int>((2 * run.first + 1) * cells - pixels - 2 * pixels * cell);
  run.border = cell == cells - 1;
  return run;
}

// Adds pixel rows to the sums of a thread's columns, which begin at x; those beyond the mask count as zero.
template <class M, bool kAligned>
__device__ void add_rows(const M* mask, const Run& rows, int64_t x, int64_t width,
                         ColumnSums<M> (&columns)[kFoldColumns]) {
  for (int64_t y = rows.first; y < rows.last; y += kFoldRows) {
    const int count = static_cast<int>(rows.last - y < kFoldRows ? rows.last - y : kFoldRows);
#pragma unroll(sizeof(M) == 1 ? 16 : 8)
    for (int r = 0; r < count; ++r) {
      const M* from = mask + (y + r) * width + x;
      Vector<M, kFoldColumns> values = {};
      if (kAligned) values = vector_at<M, kFoldColumns>(from);
      for (int i = 0; i < kFoldColumns && !kAligned; ++i) {
        if (x + i < width) values.values[i] = from[i];
      }
      const uint32_t upper = rows.upper(y + r), lower = rows.whole - upper;
      for (int i = 0; i < kFoldColumns; ++i) columns[i].add(values.values[i], lower, upper);
    }
    for (auto& column : columns) column.flush();
  }
}

// Where a column's sum is held: without the gaps, cells of 16 or 32 columns would all begin in the same bank.
__device__ __host__ inline int held_at(int column) { return column + column / 16; }

// What the columns [tile, end) give to cell j: their sums times the taps, and the taps alone.
__device__ inline Pair<double> cell_sum(const double* held, int j, int w, int64_t width, int64_t tile, int64_t end) {
  Pair<double> total = {};
  for (int cell = j > 0 ? j - 1 : 0; cell <= j; ++cell) {
    const Run run = run_of_cell(cell, w, width);
    const int64_t last = run.last < end ? run.last : end;
#pragma unroll 4
    for (int64_t x = run.first < tile ? tile : run.first; x < last; ++x) {
      const int upper = run.upper(x), part = cell < j ? upper : run.whole - upper;
      total.inside += part * held[held_at(static_cast<int>(x - tile))];
      total.outside += part;
    }
  }
  return total;
}

// One block folds the pixel rows between the centres of cell rows i and i + 1: a thread adds up columns, then threads
// add up columns to cells, and warps to totals. sums [images, 2, 2, h, w + 1] as scales_of_sums() describes them.
template <class M, class A>
__global__ void __launch_bounds__(kFoldThreads, 2)
    fold_mask(const M* masks, int64_t height, int64_t width, int h, int w, A* sums) {
  constexpr int kKinds = ColumnSums<M>::kKinds;
  auto* held = reinterpret_cast<double*>(shared_memory());
  const int threads = static_cast<int>(blockDim.x), tile_columns = threads * kFoldColumns;
  const int kind_stride = held_at(tile_columns);
  const int64_t image = blockIdx.x / h, i = blockIdx.x % h;
  const M* mask = masks + image * height * width;
  const Run rows = run_of_cell(static_cast<int>(i), h, height);
  const double whole_lower = rows.lower_total(), whole_upper = rows.upper_total();  // of a column of ones
  const bool aligned =
      width % kFoldColumns == 0 && reinterpret_cast<uintptr_t>(masks) % sizeof(Vector<M, kFoldColumns>) == 0;
  for (int64_t tile = 0; tile < width; tile += tile_columns) {
    const int64_t x = tile + threadIdx.x * kFoldColumns,
                  end = tile + tile_columns < width ? tile + tile_columns : width;
    // Adds to what the tiles before have left, unless this is the first.
    const auto write = [&](int kind, int j, double value) {
      A* to = sums + ((image * 4 + kind) * h + i) * (w + 1) + j;
      *to = static_cast<A>(tile > 0 ? *to + value : value);
    };
    ColumnSums<M> columns[kFoldColumns];
    if (x < width && aligned) add_rows<M, true>(mask, rows, x, width, columns);
    if (x < width && !aligned) add_rows<M, false>(mask, rows, x, width, columns);
    if (tile > 0) __syncthreads();  // before the sums of the former tile are overwritten
    for (int kind = 0; kind < kKinds; ++kind) {
      for (int c = 0; c < kFoldColumns; ++c)
        held[kind * kind_stride + held_at(threadIdx.x * kFoldColumns + c)] = columns[c].of(kind);
    }
    __syncthreads();
    for (int e = threadIdx.x; e < kKinds * w; e += threads) {
      const int kind = e / w, j = e % w;
      const Pair<double> sum = cell_sum(held + kind * kind_stride, j, w, width, tile, end);
      write(kind, j, sum.inside);
      if (kKinds == 2) write(kind + 2, j, (kind ? whole_upper : whole_lower) * sum.outside - sum.inside);
    }
    for (int kind = threadIdx.x / kWarp; kind < kKinds; kind += threads / kWarp) {
      double total = 0;
      for (int c = threadIdx.x % kWarp; c < end - tile; c += kWarp) total += held[kind * kind_stride + held_at(c)];
      for (int step = kWarp / 2; step > 0; step /= 2) total += __shfl_xor_sync(kAllLanes, total, step);
      const double both = 2.0 * static_cast<double>(width);  // the taps of a pixel column
      if (threadIdx.x % kWarp == 0) {
        write(kind, w, both * total);
        if (kKinds == 2)
          write(kind + 2, w, both * ((kind ? whole_upper : whole_lower) * static_cast<double>(end - tile) - total));
      }
    }
  }
}

}  // namespace mixfast::gpu
