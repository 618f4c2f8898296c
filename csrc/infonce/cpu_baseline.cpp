// SPDX-License-Identifier: MIT
#define INFONCE_ISA baseline
#include "infonce/unit_impl.h"
