// SPDX-License-Identifier: MIT
// multi_queue_infonce on CUDA: rows of the caller's memory as tiles of 16-bit numbers in shared memory.
// Layout    [parts][rows][dim], the 16 bytes of chunk c of row r at place c ^ (r % 8): the eight rows that ldmatrix
//           reads at once then lie in different banks
// Padding   missing rows and dimensions are zeros; memory behind them is not read
#pragma once

#include <cstring>

#include "common/ptx.cuh"
#include "infonce/cuda_plan.h"

namespace mixfast::gpu::infonce {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;
constexpr int kChunk = 8;  // numbers in 16 bytes

template <Factors kFactors>
struct Product {
  using Number = __half;
};
template <>
struct Product<Factors::kBFloat16> {
  using Number = __nv_bfloat16;
};

// Split numbers are multiplied by this first: what is left of the components of unit rows after rounding to float16
// would else be below its normal numbers. 65504 / kSplitUnit is the largest number that can be split.
constexpr float kSplitUnit = 16;

__device__ inline float as_float(float v) { return v; }
__device__ inline float as_float(double v) { return static_cast<float>(v); }
__device__ inline float as_float(__half v) { return __half2float(v); }
__device__ inline float as_float(__nv_bfloat16 v) { return __bfloat162float(v); }

__device__ inline uint32_t packed(float low, float high, Tag<__half>) {
  const __half2 pair = __floats2half2_rn(low, high);
  uint32_t bits;
  memcpy(&bits, &pair, sizeof(bits));
  return bits;
}
__device__ inline uint32_t packed(float low, float high, Tag<__nv_bfloat16>) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  uint32_t bits;
  memcpy(&bits, &pair, sizeof(bits));
  return bits;
}

// Two numbers rounded to float16, and what they lack then.
__device__ inline uint32_t split(float low, float high, uint32_t* rest) {
  const __half2 pair = __floats2half2_rn(low, high);
  *rest = packed(low - __low2float(pair), high - __high2float(pair), Tag<__half>{});
  uint32_t bits;
  memcpy(&bits, &pair, sizeof(bits));
  return bits;
}

// Where 16 bytes lie in a tile.
template <int kDim>
__device__ inline int place(int row, int chunk) {
  return row * 2 * kDim + ((chunk ^ (row % 8)) << 4);
}

// The place 2 k chunks after one of the first two of a row; the row's exclusive or reaches three bits of the chunk.
__device__ inline int moved(int place, int k) { return (place ^ (k % 4 << 5)) + (k / 4 << 7); }

struct Rows {
  Type type;
  Access access;
  int64_t column_stride;
  int dim;
};

template <class T>
__device__ inline void read_chunk(const void* address, int first, const Rows& rows, float (&values)[kChunk]) {
  const T* const from = static_cast<const T*>(address);
  if (rows.access == Access::kScattered) {
#pragma unroll
    for (int i = 0; i < kChunk; ++i)
      values[i] = first + i < rows.dim ? as_float(from[(first + i) * rows.column_stride]) : 0.0f;
    return;
  }
  constexpr int kWords = kChunk * sizeof(T) / sizeof(uint4);
  uint4 words[kWords];
  T numbers[kChunk];
#pragma unroll
  for (int i = 0; i < kWords; ++i) words[i] = reinterpret_cast<const uint4*>(from + first)[i];
  memcpy(numbers, words, sizeof(numbers));
#pragma unroll
  for (int i = 0; i < kChunk; ++i) values[i] = as_float(numbers[i]);
}

template <Factors kFactors, int kDim, int kRows, int kThreads, class T, class Address>
__device__ inline void convert_tile(unsigned char* tile, const Rows& rows, const Address& address) {
  constexpr int kChunks = kDim / kChunk;
#pragma unroll 2
  for (int i = threadIdx.x; i < kRows * kChunks; i += kThreads) {
    const int row = i / kChunks, chunk = i % kChunks;
    const void* const from = address(row);
    float values[kChunk] = {};
    if (from != nullptr && chunk * kChunk < rows.dim) read_chunk<T>(from, chunk * kChunk, rows, values);
    uint32_t words[2][4];
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      const float low = values[2 * w], high = values[2 * w + 1];
      if constexpr (kFactors == Factors::kSplit) {
        words[0][w] = split(low * kSplitUnit, high * kSplitUnit, &words[1][w]);
      } else {
        words[0][w] = packed(low, high, Tag<typename Product<kFactors>::Number>{});
      }
    }
    unsigned char* const to = tile + place<kDim>(row, chunk);
    *reinterpret_cast<uint4*>(to) = make_uint4(words[0][0], words[0][1], words[0][2], words[0][3]);
    if constexpr (kFactors == Factors::kSplit)
      *reinterpret_cast<uint4*>(to + kRows * 2 * kDim) = make_uint4(words[1][0], words[1][1], words[1][2], words[1][3]);
  }
}

// Fills a tile of kRows rows by all threads of the block; address(row) is null where there is no row. What is copied
// rather than converted belongs to the threads' open groups of copies.
template <Factors kFactors, int kDim, int kRows, int kThreads, class Address>
__device__ inline void load_tile(unsigned char* tile, const Rows& rows, const Address& address) {
  if constexpr (kFactors != Factors::kSplit) {
    if (rows.access == Access::kCopied) {
      constexpr int kChunks = kDim / kChunk, kStep = kThreads / kChunks;
      const int chunk = threadIdx.x % kChunks;
#pragma unroll
      for (int step = 0; step < kRows; step += kStep) {
        const int row = step + threadIdx.x / kChunks;
        const unsigned char* const from = static_cast<const unsigned char*>(address(row));
        cp_async_16(tile + place<kDim>(row, chunk), from + 16 * chunk, from != nullptr && chunk * kChunk < rows.dim);
      }
      return;
    }
  }
  if (rows.type == Type::kFloat) {
    convert_tile<kFactors, kDim, kRows, kThreads, float>(tile, rows, address);
  } else if (rows.type == Type::kHalf) {
    convert_tile<kFactors, kDim, kRows, kThreads, __half>(tile, rows, address);
  } else {
    convert_tile<kFactors, kDim, kRows, kThreads, __nv_bfloat16>(tile, rows, address);
  }
}

}  // namespace mixfast::gpu::infonce
