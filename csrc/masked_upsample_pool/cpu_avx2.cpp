// SPDX-License-Identifier: MIT
// The loops of masked_upsample_pool for x86-64 with AVX2, FMA and F16C; csrc/sources.txt has the flags.
#if defined(__x86_64__)
#include "masked_upsample_pool/kernels_impl.h"

namespace mixfast {
const Kernels kAvx2Kernels = kernels();
}
#endif
