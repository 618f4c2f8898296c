// SPDX-License-Identifier: MIT
// multi_queue_infonce on sm_90a: what a warpgroup does with its 64 rows and a tile of keys, by wgmma. Numbers and their
// meaning are those of cuda_warp.cuh; the tile is read twice, by rows for the scores and by columns for the products.
#pragma once

#include "common/hopper.cuh"
#include "infonce/cuda_warp.cuh"
#include "infonce/hopper_plan.h"

namespace mixfast::gpu::infonce {

constexpr int kGroupBytes = 1024;  // eight rows of a panel

// A lane has rows l / 4 and l / 4 + 8 of its warp's 16, in each 8 columns as mma leaves them.
template <Factors kFactors, int kDim, bool kGrad>
struct Consumer {
  static constexpr int kKeys = kHopperTilingOf<kDim>.keys, kRows = kHopperTilingOf<kDim>.rows;
  static constexpr int kWide = kDim == 64 ? 8 : 16;  // groups of 8 columns that one instruction adds to
  using Number = typename Product<kFactors>::Number;

  float scale[2], reference[2], sum[2], shrink[2];
  float scores[kKeys / 8][4];
  uint32_t weights[kGrad ? kKeys / 16 : 1][4];
  float products[kGrad ? kDim / 8 : 1][4];

  __device__ void begin(const float* scales) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      scale[half] = scales[half * 8 + threadIdx.x % kWarp / 4];
      reference[half] = -INFINITY;
    }
  }

  // Starts scores = queries keys^T, before scaling; a group of its own.
  __device__ void start_scores(const unsigned char* queries, const unsigned char* tile) {
    const uint64_t a = descriptor(queries, 0, kGroupBytes), b = descriptor(tile, 0, kGroupBytes);
#pragma unroll
    for (int k = 0; k < kDim / 16; ++k) {
      const int inside = k % 4 * 32, panel = k / 4 * 2 * kPanel;  // bytes, and bytes for each row
      wgmma(scores, a + (panel * kRows + inside) / 16, b + (panel * kKeys + inside) / 16, k > 0, Tag<Number>{});
    }
    wgmma_commit();
  }

  // Starts products += weights keys; a group of its own.
  __device__ void start_products(const unsigned char* tile) {
    constexpr int kPanelOf = kKeys * 2 * kPanel;
    const uint64_t b = descriptor(tile, kPanelOf, kGroupBytes);
#pragma unroll
    for (int j = 0; j < kKeys / 16; ++j) {
#pragma unroll
      for (int n = 0; n < kDim / 8; n += kWide)
        wgmma(*reinterpret_cast<float (*)[kWide][4]>(products + n), weights[j],
              b + (n / 8 * kPanelOf + j * 2 * kGroupBytes) / 16, Tag<Number>{});
    }
    wgmma_commit();
  }

  // Turns scores into weights, and adds them up. Keys from `count` on do not exist. Products so far must shrink.
  __device__ void weigh(int count);

  // Products become what they would be with the new references.
  __device__ void rescale() {
    if (shrink[0] == 1 && shrink[1] == 1) return;
#pragma unroll
    for (int n = 0; n < kDim / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) products[n][i] *= shrink[i / 2];
    }
  }

  // Rounds the weights to the numbers that wgmma multiplies.
  __device__ void round() {
#pragma unroll
    for (int j = 0; j < kKeys / 16; ++j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float* const pair = scores[2 * j + i / 2] + i % 2 * 2;
        weights[j][i] = packed(pair[0], pair[1], Tag<Number>{});
      }
    }
  }

  // Results of the warp's rows from `slot` on, of which `rows` exist.
  __device__ void write(const Call& call, int chunk, int slot, int rows) const;
};

template <Factors kFactors, int kDim, bool kGrad>
__device__ void Consumer<kFactors, kDim, kGrad>::weigh(int count) {
  const int first = threadIdx.x % 4 * 2;
  if (count < kKeys) {
#pragma unroll
    for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (n * 8 + first + i % 2 >= count) scores[n][i] = -INFINITY;
      }
    }
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float top = -INFINITY;
#pragma unroll
    for (int n = 0; n < kKeys / 8; ++n) top = fmaxf(top, fmaxf(scores[n][2 * half], scores[n][2 * half + 1]));
    top = fmaxf(top, __shfl_xor_sync(kAllLanes, top, 1));
    top = fmaxf(top, __shfl_xor_sync(kAllLanes, top, 2)) * scale[half];
    shrink[half] = 1;
    if (top > reference[half] + kLargest) {
      const float next = reference_of(top);
      shrink[half] = exp2_approx(reference[half] - next);
      reference[half] = next;
    }
    float tile_sum = 0;
#pragma unroll
    for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
      for (int i = 2 * half; i < 2 * half + 2; ++i) {
        scores[n][i] = exp2_approx(fmaf(scores[n][i], scale[half], -reference[half]));
        tile_sum += scores[n][i];
      }
    }
    sum[half] = sum[half] * shrink[half] + tile_sum;
  }
}

template <Factors kFactors, int kDim, bool kGrad>
__device__ void Consumer<kFactors, kDim, kGrad>::write(const Call& call, int chunk, int slot, int rows) const {
  const int lane = threadIdx.x % kWarp;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float total = sum[half];
    total += __shfl_xor_sync(kAllLanes, total, 1);
    total += __shfl_xor_sync(kAllLanes, total, 2);
    const int row = half * 8 + lane / 4;
    if (row >= rows) continue;
    const int64_t cell = static_cast<int64_t>(chunk) * call.rows + slot + row;
    if (lane % 4 == 0) {
      call.maxima[cell] = reference[half];
      call.sums[cell] = total;
    }
    if constexpr (kGrad) {
      float* const to = call.products + cell * kDim + lane % 4 * 2;
#pragma unroll
      for (int n = 0; n < kDim / 8; ++n)
        *reinterpret_cast<float2*>(to + n * 8) = make_float2(products[n][2 * half], products[n][2 * half + 1]);
    }
  }
}

}  // namespace mixfast::gpu::infonce
