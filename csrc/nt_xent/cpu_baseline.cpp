// SPDX-License-Identifier: MIT
#define NT_XENT_ISA baseline
#include "nt_xent/tile_impl.h"
