// SPDX-License-Identifier: MIT
// What tests/cuda/emulated.py compiles once for all kernels and drivers.
#include "driver.h"
#include "emulated_hopper.h"
