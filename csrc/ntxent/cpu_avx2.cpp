// SPDX-License-Identifier: MIT
#if defined(__AVX2__)
#define NT_XENT_ISA avx2
#include "ntxent/tile_impl.h"
#endif
