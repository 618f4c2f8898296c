// SPDX-License-Identifier: MIT
// How Python hands over maps (mixfast/ops/norm/cpu_native.py), for both bindings.
#pragma once

#include <pybind11/pybind11.h>

#include "norm/cpu.h"

namespace mixfast::splitnorm {

using Address = uintptr_t;

inline void* pointer(Address address) { return reinterpret_cast<void*>(address); }

inline Maps maps(int64_t samples, int64_t channels, int64_t pixels, int64_t groups, bool channels_last, int type) {
  return {samples, channels, pixels, groups, channels_last, static_cast<Type>(type)};
}

}  // namespace mixfast::splitnorm
