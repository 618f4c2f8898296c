// SPDX-License-Identifier: MIT
// Products of small matrices in registers: vectors of one factor times scalars of the other, read without packing.
// Internal linkage, as in simd.h.
#pragma once

#include <cstdint>

#include "common/exp2.h"
#include "common/simd.h"

namespace mixfast {
namespace {

// Results in a register block: kBlock x 2 vectors at most.
#if defined(__AVX512F__)
constexpr int kBlock = 12;  // 24 of 32 registers hold sums
#else
constexpr int kBlock = 6;  // 12 of 16
#endif

template <class T>
using WideVector = typename Wide<T>::Vector;

template <class T>
MIXFAST_INLINE WideVector<T> get(const T* from) {
  return *reinterpret_cast<const typename Wide<T>::Stored*>(from);
}
template <class T>
MIXFAST_INLINE void put(T* to, WideVector<T> value) {
  *reinterpret_cast<typename Wide<T>::Stored*>(to) = value;
}

// sums[i][v] = sum_k a(i, k) b[k][v], a(i, k) = a[k * a_stride + i] if COLUMNS else a[i * a_stride + k].
template <class T, int BLOCK, int VECTORS, bool COLUMNS>
MIXFAST_INLINE void multiply(const T* a, int64_t a_stride, const T* b, int64_t b_stride, int64_t depth,
                             WideVector<T> (&sums)[BLOCK][VECTORS]) {
#pragma GCC unroll 16
  for (int i = 0; i < BLOCK; ++i)
#pragma GCC unroll 2
    for (int v = 0; v < VECTORS; ++v) sums[i][v] = WideVector<T>{};
  for (int64_t k = 0; k < depth; ++k) {
    WideVector<T> row[VECTORS];
#pragma GCC unroll 2
    for (int v = 0; v < VECTORS; ++v) row[v] = get(b + k * b_stride + v * kWidth<T>);
#pragma GCC unroll 16
    for (int i = 0; i < BLOCK; ++i) {
      const T scalar = COLUMNS ? a[k * a_stride + i] : a[i * a_stride + k];
#pragma GCC unroll 2
      for (int v = 0; v < VECTORS; ++v) sums[i][v] += row[v] * scalar;
    }
  }
}

template <int N>
struct Size {
  static constexpr int value = N;
};

// Calls step(Size, done) with the largest block sizes that add up to `count`.
template <class Step>
MIXFAST_INLINE void in_blocks(int64_t count, Step step) {
  int64_t done = 0;
  for (; done + kBlock <= count; done += kBlock) step(Size<kBlock>{}, done);
  if (kBlock > 8 && done + 8 <= count) step(Size<8>{}, done), done += 8;
  if (done + 4 <= count) step(Size<4>{}, done), done += 4;
  if (done + 2 <= count) step(Size<2>{}, done), done += 2;
  if (done < count) step(Size<1>{}, done);
}

}  // namespace
}  // namespace mixfast
