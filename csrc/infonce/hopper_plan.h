// SPDX-License-Identifier: MIT
// How work is cut for the main kernel on sm_90a, and where its block keeps what. Host C++ without a CUDA header.
#pragma once

#include "infonce/cuda_plan.h"

namespace mixfast::gpu::infonce {

constexpr int kPanel = 64;         // columns of a panel: 128 bytes, the width of the swizzle
constexpr int kPanelBytes = 1024;  // panels begin at its multiples, where the swizzle repeats
constexpr int kConsumers = 256;    // threads in two warpgroups, each with 64 rows of a tile; the third one copies
constexpr int kHopperThreads = kConsumers + 128;

// As many keys as leave a consumer, of 240 registers, room for its products [64][dim], scores and weights [64][keys].
constexpr Tiling hopper_tiling(int dim) {
  Tiling tiling = make_tiling(dim, 1, kConsumers / 32, 1, dim == 256 ? 64 : 128, 4, 1, 1);
  tiling.threads = kHopperThreads;
  tiling.shared_bytes += kPanelBytes + tiling.rows * 12 + tiling.stages * 16;  // alignment, row table, barriers
  return tiling;
}

template <int kDim>
constexpr Tiling kHopperTilingOf = hopper_tiling(kDim);

}  // namespace mixfast::gpu::infonce
