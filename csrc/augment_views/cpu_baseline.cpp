// SPDX-License-Identifier: MIT
#define AUGMENT_ISA baseline
#include "augment_views/view_impl.h"
