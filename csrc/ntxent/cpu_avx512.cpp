// SPDX-License-Identifier: MIT
#if defined(__AVX512F__)
#define NT_XENT_ISA avx512
#include "ntxent/tile_impl.h"
#endif
