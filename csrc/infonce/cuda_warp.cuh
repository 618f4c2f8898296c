// SPDX-License-Identifier: MIT
// multi_queue_infonce on CUDA: what a warp does with its rows and a tile of keys, on tensor cores. In base 2, with
// scale = log2(e) / tau, s_j = q.x_j scale and a reference m near the largest s_j so far:
//     sum = sum_j 2^(s_j - m)     products = sum_j 2^(s_j - m) x_j
// Maximum   of the negatives alone (a dominant positive would make 16-bit weights of them vanish); m moves only when a
//           weight would exceed 2^kLargest, so that the products are rarely rescaled
// Numerics  fp32 sums of products of 16-bit numbers, in an order fixed by the shapes
#pragma once

#include "infonce/cuda_unit.cuh"

namespace mixfast::gpu::infonce {

// Weights as powers of two: the largest (float16 ends at 16), and the largest of a tile whose row gets a new reference.
constexpr float kLargest = 15, kUsual = 7;

// The reference of a row whose largest logit is `top`. A fused multiply-add does not round its product, and from 2^24
// on numbers are more than one apart: there the reference is a unit or two in the last place lower, so that the largest
// weight cannot vanish. It may overflow, which shows.
__device__ inline float reference_of(float top) {
  const float usual = top - kUsual, size = fabsf(usual);
  return size < 0x1p24f ? usual : usual - size * 0x1p-23f;
}

// What a warp holds of its rows. A lane has rows l / 4 and l / 4 + 8 of each set of 16, and of an 8-column tile the
// columns 2 (l % 4) and the next: numbers 0, 1 of the first row and 2, 3 of the second, as mma leaves them.
template <Factors kFactors, int kDim, bool kGrad>
struct Warp {
  static constexpr Tiling kTiling = kTilingOf<kFactors, kDim>;
  static constexpr int kSets = kTiling.sets, kKeys = kTiling.keys, kParts = kTiling.parts;
  static constexpr int kRowBytes = kTiling.row_bytes, kShared = kTiling.threads / 2;
  using Number = typename Product<kFactors>::Number;

  float scale[kSets][2], reference[kSets][2], sum[kSets][2];
  float products[kGrad ? kSets : 1][kGrad ? kDim / 8 : 1][4];

  __device__ void begin(const float* scales);

  // The three products of split numbers leave out that of the rests.
  template <int kColumns>
  static __device__ void multiply(float (&d)[kColumns][4], int column, const uint32_t (&a)[kParts][4],
                                  const uint32_t (&b)[kParts][4]);

  // Scores of the warp's rows, at `queries`, with the keys of a tile, before scaling.
  static __device__ void multiply_keys(const unsigned char* queries, const unsigned char* tile,
                                       float (&scores)[kSets][kKeys / 8][4]);

  // Turns scores into weights, and adds them up. Keys from `count` on do not exist.
  __device__ void weigh(float (&scores)[kSets][kKeys / 8][4], int count);

  // products += weights times keys.
  __device__ void add_keys(const unsigned char* tile, const float (&weights)[kSets][kKeys / 8][4]);

  // Leaves everything to the thread of the other group that has the same rows; `shared` is this thread's first number.
  __device__ void give(float* shared) const;

  // Adds what the other thread gave.
  __device__ void take(const float* shared);

  // Results of the warp's rows from `slot` on, of which `rows` exist.
  __device__ void write(const Call& call, int chunk, int slot, int rows);
};

template <Factors kFactors, int kDim, bool kGrad>
__device__ void Warp<kFactors, kDim, kGrad>::begin(const float* scales) {
#pragma unroll
  for (int set = 0; set < kSets; ++set) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      scale[set][half] = scales[set * 16 + half * 8 + threadIdx.x % kWarp / 4];
      if (kFactors == Factors::kSplit) scale[set][half] /= kSplitUnit * kSplitUnit;
      reference[set][half] = -INFINITY;
    }
  }
}

template <Factors kFactors, int kDim, bool kGrad>
template <int kColumns>
__device__ void Warp<kFactors, kDim, kGrad>::multiply(float (&d)[kColumns][4], int column,
                                                      const uint32_t (&a)[kParts][4], const uint32_t (&b)[kParts][4]) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const uint32_t whole[2] = {b[0][2 * half], b[0][2 * half + 1]};
    if constexpr (kParts == 2) {
      const uint32_t rest[2] = {b[1][2 * half], b[1][2 * half + 1]};
      mma_m16n8k16(d[column + half], a[1], whole, Tag<Number>{});
      mma_m16n8k16(d[column + half], a[0], rest, Tag<Number>{});
    }
    mma_m16n8k16(d[column + half], a[0], whole, Tag<Number>{});
  }
}

template <Factors kFactors, int kDim, bool kGrad>
__device__ void Warp<kFactors, kDim, kGrad>::multiply_keys(const unsigned char* queries, const unsigned char* tile,
                                                           float (&scores)[kSets][kKeys / 8][4]) {
  const int lane = threadIdx.x % kWarp;
  const int a_place = place<kDim>(lane % 16, lane / 16), b_place = place<kDim>(lane % 8 + lane / 16 * 8, lane / 8 % 2);
#pragma unroll
  for (int k = 0; k < kDim / 16; ++k) {
    uint32_t a[kSets][kParts][4];
#pragma unroll
    for (int set = 0; set < kSets; ++set) {
#pragma unroll
      for (int part = 0; part < kParts; ++part)
        ldmatrix_x4(a[set][part], queries + (part * kTiling.rows + set * 16) * kRowBytes + moved(a_place, k));
    }
#pragma unroll
    for (int n = 0; n < kKeys / 16; ++n) {
      uint32_t b[kParts][4];
#pragma unroll
      for (int part = 0; part < kParts; ++part)
        ldmatrix_x4(b[part], tile + (part * kKeys + n * 16) * kRowBytes + moved(b_place, k));
#pragma unroll
      for (int set = 0; set < kSets; ++set) multiply(scores[set], 2 * n, a[set], b);
    }
  }
}

template <Factors kFactors, int kDim, bool kGrad>
__device__ void Warp<kFactors, kDim, kGrad>::weigh(float (&scores)[kSets][kKeys / 8][4], int count) {
  const int first = threadIdx.x % 4 * 2;
  if (count < kKeys) {
#pragma unroll
    for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (n * 8 + first + i % 2 < count) continue;
#pragma unroll
        for (int set = 0; set < kSets; ++set) scores[set][n][i] = -INFINITY;
      }
    }
  }
#pragma unroll
  for (int set = 0; set < kSets; ++set) {
    float shrink[2] = {1, 1};
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float top = -INFINITY;
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n)
        top = fmaxf(top, fmaxf(scores[set][n][2 * half], scores[set][n][2 * half + 1]));
      top = fmaxf(top, __shfl_xor_sync(kAllLanes, top, 1));
      top = fmaxf(top, __shfl_xor_sync(kAllLanes, top, 2)) * scale[set][half];
      if (top > reference[set][half] + kLargest) {
        const float next = reference_of(top);
        shrink[half] = exp2_approx(reference[set][half] - next);
        reference[set][half] = next;
      }
      float tile_sum = 0;
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
        for (int i = 2 * half; i < 2 * half + 2; ++i) {
          scores[set][n][i] = exp2_approx(fmaf(scores[set][n][i], scale[set][half], -reference[set][half]));
          tile_sum += scores[set][n][i];
        }
      }
      sum[set][half] = sum[set][half] * shrink[half] + tile_sum;
    }
    if (kGrad && (shrink[0] != 1 || shrink[1] != 1)) {
#pragma unroll
      for (int n = 0; n < kDim / 8; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) products[set][n][i] *= shrink[i / 2];
      }
    }
  }
}

template <Factors kFactors, int kDim, bool kGrad>
__device__ void Warp<kFactors, kDim, kGrad>::add_keys(const unsigned char* tile,
                                                      const float (&weights)[kSets][kKeys / 8][4]) {
  const int lane = threadIdx.x % kWarp, b_place = place<kDim>(lane % 16, lane / 16);
#pragma unroll
  for (int j = 0; j < kKeys / 16; ++j) {
    uint32_t a[kSets][kParts][4];
#pragma unroll
    for (int set = 0; set < kSets; ++set) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float low = weights[set][2 * j + i / 2][i % 2 * 2], high = weights[set][2 * j + i / 2][i % 2 * 2 + 1];
        if constexpr (kParts == 2) {
          a[set][0][i] = split(low, high, &a[set][1][i]);
        } else {
          a[set][0][i] = packed(low, high, Tag<Number>{});
        }
      }
    }
#pragma unroll
    for (int n = 0; n < kDim / 16; ++n) {
      uint32_t b[kParts][4];
#pragma unroll
      for (int part = 0; part < kParts; ++part)
        ldmatrix_x4_trans(b[part], tile + (part * kKeys + j * 16) * kRowBytes + moved(b_place, n));
#pragma unroll
      for (int set = 0; set < kSets; ++set) multiply(products[set], 2 * n, a[set], b);
    }
  }
}

template <Factors kFactors, int kDim, bool kGrad>
__device__ void Warp<kFactors, kDim, kGrad>::give(float* shared) const {
#pragma unroll
  for (int set = 0; set < kSets; ++set) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      *shared = reference[set][half];
      *(shared += kShared) = sum[set][half];
      shared += kShared;
    }
    if constexpr (kGrad) {
#pragma unroll
      for (int n = 0; n < kDim / 8; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i, shared += kShared) *shared = products[set][n][i];
      }
    }
  }
}

template <Factors kFactors, int kDim, bool kGrad>
__device__ void Warp<kFactors, kDim, kGrad>::take(const float* shared) {
#pragma unroll
  for (int set = 0; set < kSets; ++set) {
    float weight[2], other_weight[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float other = *shared, top = fmaxf(reference[set][half], other);
      weight[half] = exp2_approx(reference[set][half] - top);
      other_weight[half] = exp2_approx(other - top);
      reference[set][half] = top;
      sum[set][half] = sum[set][half] * weight[half] + *(shared += kShared) * other_weight[half];
      shared += kShared;
    }
    if constexpr (kGrad) {
#pragma unroll
      for (int n = 0; n < kDim / 8; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i, shared += kShared)
          products[set][n][i] = products[set][n][i] * weight[i / 2] + *shared * other_weight[i / 2];
      }
    }
  }
}

template <Factors kFactors, int kDim, bool kGrad>
__device__ void Warp<kFactors, kDim, kGrad>::write(const Call& call, int chunk, int slot, int rows) {
  constexpr float kUnit = kFactors == Factors::kSplit ? 1 / kSplitUnit : 1;
  const int lane = threadIdx.x % kWarp;
#pragma unroll
  for (int set = 0; set < kSets; ++set) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float total = sum[set][half];
      total += __shfl_xor_sync(kAllLanes, total, 1);
      total += __shfl_xor_sync(kAllLanes, total, 2);
      const int row = set * 16 + half * 8 + lane / 4;
      if (row >= rows) continue;
      const int64_t cell = static_cast<int64_t>(chunk) * call.rows + slot + row;
      if (lane % 4 == 0) {
        call.maxima[cell] = reference[set][half];
        call.sums[cell] = total;
      }
      if constexpr (kGrad) {
        float* const to = call.products + cell * kDim + lane % 4 * 2;
#pragma unroll
        for (int n = 0; n < kDim / 8; ++n)
          *reinterpret_cast<float2*>(to + n * 8) =
              make_float2(products[set][n][2 * half] * kUnit, products[set][n][2 * half + 1] * kUnit);
      }
    }
  }
}

}  // namespace mixfast::gpu::infonce
