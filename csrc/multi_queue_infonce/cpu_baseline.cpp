// SPDX-License-Identifier: MIT
#define INFONCE_ISA baseline
#include "multi_queue_infonce/unit_impl.h"
