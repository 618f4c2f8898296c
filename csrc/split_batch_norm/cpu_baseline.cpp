// SPDX-License-Identifier: MIT
#define SPLIT_NORM_ISA baseline
#include "split_batch_norm/kernels_impl.h"
