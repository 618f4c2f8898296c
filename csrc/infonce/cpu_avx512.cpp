// SPDX-License-Identifier: MIT
#if defined(__AVX512F__)
#define INFONCE_ISA avx512
#include "infonce/unit_impl.h"
#endif
