// SPDX-License-Identifier: MIT
#if defined(__AVX512F__)
#define SPLIT_NORM_ISA avx512
#include "norm/kernels_impl.h"
#endif
