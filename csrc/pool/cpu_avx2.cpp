// SPDX-License-Identifier: MIT
// The loops of masked_upsample_pool for x86-64 with AVX2, FMA and F16C; csrc/sources.txt has the flags.
#if defined(__x86_64__)
#include "pool/pool_impl.h"
#include "pool/weights_impl.h"

namespace mixfast {
const PoolKernels kAvx2Pool[kFeatureDtypes] = MIXFAST_POOL_KERNELS;
const WeightKernels kAvx2Weights = MIXFAST_WEIGHT_KERNELS;
}  // namespace mixfast
#endif
