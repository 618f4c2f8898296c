// SPDX-License-Identifier: MIT
// masked_upsample_pool on CUDA: sizes of its blocks, and what a position weighs.
#pragma once

#include "common/elements.cuh"
#include "pool/cpu.h"

namespace mixfast::gpu {

constexpr int kThreads = 128;  // of every block but those of `spread` and `fold_mask`
constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

// Weights of a position, or sums of a channel.
template <class A>
struct alignas(2 * sizeof(A)) Pair {
  A inside, outside;
};

template <class A>
__device__ void add_product(Pair<A>& sums, A value, const Pair<A>& weights) {
  sums.inside += value * weights.inside;
  sums.outside += value * weights.outside;
}

}  // namespace mixfast::gpu
