// SPDX-License-Identifier: MIT
#define SPLIT_NORM_ISA baseline
#include "norm/kernels_impl.h"
