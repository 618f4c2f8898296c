// SPDX-License-Identifier: MIT
// What the bindings of masked_upsample_pool share: Python's integers as pointers, maps and regions.
#pragma once

#include <cstdint>

#include "masked_upsample_pool/cpu.h"

namespace {

using Pointer = uintptr_t;

void* pointer(Pointer address) { return reinterpret_cast<void*>(address); }

mixfast::Maps maps(int64_t batch, int64_t channels, int64_t h, int64_t w, int dtype, bool channels_last) {
  return {batch, channels, h, w, static_cast<mixfast::Dtype>(dtype), channels_last};
}

// `mask_dtype` is negative for boxes.
mixfast::Regions regions(Pointer data, int64_t images, int64_t height, int64_t width, int mask_dtype) {
  return {pointer(data), images, height, width, mask_dtype < 0, static_cast<mixfast::Dtype>(mask_dtype)};
}

}  // namespace
