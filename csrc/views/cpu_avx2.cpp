// SPDX-License-Identifier: MIT
#if defined(__AVX2__)
#define AUGMENT_ISA avx2
#include "views/view_impl.h"
#endif
