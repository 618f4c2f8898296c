// SPDX-License-Identifier: MIT
// masked_upsample_pool on CPU: the table of loops for the instruction set of the including file.
#pragma once

#include "masked_upsample_pool/pool_impl.h"
#include "masked_upsample_pool/weights_impl.h"

namespace mixfast {
namespace {

template <class T>
constexpr PoolKernels pool_kernels() {
  return {pool<T>, pool_last<T>, spread<T>, spread_last<T>};
}

constexpr Kernels kernels() {
  return {{pool_kernels<float>(), pool_kernels<double>(), pool_kernels<Half>(), pool_kernels<BFloat16>()},
          box_weights<float>,
          box_weights<double>,
          fold_bytes,
          {fold<float>, fold<double>, fold<Half>, fold<BFloat16>, fold<uint8_t>}};
}

}  // namespace
}  // namespace mixfast
