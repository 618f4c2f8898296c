// SPDX-License-Identifier: MIT
#define NT_XENT_ISA baseline
#include "ntxent/tile_impl.h"
