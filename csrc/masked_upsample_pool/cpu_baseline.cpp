// SPDX-License-Identifier: MIT
// The loops of masked_upsample_pool for any processor.
#include "masked_upsample_pool/kernels_impl.h"

namespace mixfast {
const Kernels kBaselineKernels = kernels();
}
