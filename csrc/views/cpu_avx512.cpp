// SPDX-License-Identifier: MIT
#if defined(__AVX512F__)
#define AUGMENT_ISA avx512
#include "views/view_impl.h"
#endif
