// SPDX-License-Identifier: MIT
// Reading and writing rows of any stored type. Internal linkage, as in simd.h.
#pragma once

#include <cstdint>

#include "common/matrix.h"
#include "common/simd.h"

namespace mixfast {
namespace {

// `count` values from `from` on, `stride` apart, converted.
template <class T, class S>
MIXFAST_INLINE void convert(const S* from, int64_t stride, int64_t count, T* to) {
  constexpr int64_t lanes = kLanes<computed_t<S>>;
  int64_t i = 0;
  if (stride == 1) {
    for (; i + lanes <= count; i += lanes) {
      const auto values = load(from + i);
      for (int64_t l = 0; l < lanes; ++l) to[i + l] = static_cast<T>(values[l]);
    }
    if (i < count) {
      const auto values = load_first(from + i, count - i);
      for (int64_t l = 0; l < count - i; ++l) to[i + l] = static_cast<T>(values[l]);
    }
    return;
  }
  for (; i < count; ++i) to[i] = static_cast<T>(load_first(from + i * stride, 1)[0]);
}

template <class T>
void convert(const void* data, Type type, int64_t offset, int64_t stride, int64_t count, T* to) {
  switch (type) {
    case Type::kFloat:
      return convert(static_cast<const float*>(data) + offset, stride, count, to);
    case Type::kDouble:
      return convert(static_cast<const double*>(data) + offset, stride, count, to);
    case Type::kHalf:
      return convert(static_cast<const Half*>(data) + offset, stride, count, to);
    case Type::kBFloat16:
      return convert(static_cast<const BFloat16*>(data) + offset, stride, count, to);
  }
}

// The reverse, to adjacent elements.
template <class T, class S>
MIXFAST_INLINE void convert_back(const T* from, int64_t count, S* to) {
  constexpr int64_t lanes = kLanes<computed_t<S>>;
  for (int64_t i = 0; i < count; i += lanes) {
    vector_t<computed_t<S>> values = {};
    const int64_t used = count - i < lanes ? count - i : lanes;
    for (int64_t l = 0; l < used; ++l) values[l] = static_cast<computed_t<S>>(from[i + l]);
    used == lanes ? store(to + i, values) : store_first(to + i, values, used);
  }
}

template <class T>
void convert_back(const T* from, int64_t count, void* data, Type type, int64_t offset) {
  switch (type) {
    case Type::kFloat:
      return convert_back(from, count, static_cast<float*>(data) + offset);
    case Type::kDouble:
      return convert_back(from, count, static_cast<double*>(data) + offset);
    case Type::kHalf:
      return convert_back(from, count, static_cast<Half*>(data) + offset);
    case Type::kBFloat16:
      return convert_back(from, count, static_cast<BFloat16*>(data) + offset);
  }
}

MIXFAST_INLINE const void* row_address(const Matrix& matrix, int64_t row) {
  const int64_t bytes = matrix.type == Type::kDouble ? 8 : matrix.type == Type::kFloat ? 4 : 2;
  return static_cast<const char*>(matrix.data) + row * matrix.row_stride * bytes;
}

}  // namespace
}  // namespace mixfast
