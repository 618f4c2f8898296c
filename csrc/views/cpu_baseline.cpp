// SPDX-License-Identifier: MIT
#define AUGMENT_ISA baseline
#include "views/view_impl.h"
