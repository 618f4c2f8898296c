// SPDX-License-Identifier: MIT
// How Python hands over maps and regions (mixfast/ops/pool/cpu_native.py), for both bindings.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <tuple>

#include "pool/cpu.h"

namespace mixfast {

inline void* pointer(int64_t address) { return reinterpret_cast<void*>(address); }

// Batch, channels, h, w, dtype, whether channels are last.
using MapsTuple = std::tuple<int64_t, int64_t, int64_t, int64_t, int, bool>;

inline Maps maps_of(const MapsTuple& tuple) {
  const auto [batch, channels, h, w, dtype, channels_last] = tuple;
  return {batch, channels, h, w, static_cast<Dtype>(dtype), channels_last};
}

// Address, images, height, width, whether they are boxes, dtype of a mask.
using RegionsTuple = std::tuple<int64_t, int64_t, int64_t, int64_t, bool, int>;

inline Regions regions_of(const RegionsTuple& tuple) {
  const auto [address, images, height, width, boxes, dtype] = tuple;
  return {pointer(address), images, height, width, boxes, static_cast<Dtype>(dtype)};
}

}  // namespace mixfast
