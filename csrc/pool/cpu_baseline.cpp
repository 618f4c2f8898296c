// SPDX-License-Identifier: MIT
// The loops of masked_upsample_pool for any processor.
#include "pool/pool_impl.h"
#include "pool/weights_impl.h"

namespace mixfast {
const PoolKernels kBaselinePool[kFeatureDtypes] = MIXFAST_POOL_KERNELS;
const WeightKernels kBaselineWeights = MIXFAST_WEIGHT_KERNELS;
}  // namespace mixfast
