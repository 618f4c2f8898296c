// SPDX-License-Identifier: MIT
#if defined(__AVX512F__)
#define INFONCE_ISA avx512
#include "multi_queue_infonce/unit_impl.h"
#endif
