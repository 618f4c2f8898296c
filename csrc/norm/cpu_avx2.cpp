// SPDX-License-Identifier: MIT
#if defined(__AVX2__)
#define SPLIT_NORM_ISA avx2
#include "norm/kernels_impl.h"
#endif
