// SPDX-License-Identifier: MIT
#if defined(__AVX2__)
#define INFONCE_ISA avx2
#include "infonce/unit_impl.h"
#endif
