// SPDX-License-Identifier: MIT
// The loops of masked_upsample_pool for x86-64 with AVX-512 and its bfloat16 rounding; csrc/sources.txt has the flags.
// All but `pool`: the shuffles by which it adds lanes are slower in the wide registers than AVX2's (measured on Zen 4).
#if defined(__x86_64__)
#include "pool/pool_impl.h"

namespace mixfast {
namespace {
template <class T>
constexpr PoolKernels streams() {
  return {nullptr, pool_last<T>, spread<T>, spread_last<T>};
}
}  // namespace

const PoolKernels kAvx512Streams[kFeatureDtypes] = {streams<float>(), streams<double>(), streams<Half>(),
                                                    streams<BFloat16>()};
}  // namespace mixfast
#endif
