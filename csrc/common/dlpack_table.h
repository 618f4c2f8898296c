// SPDX-License-Identifier: MIT
// The part of DLPack's binary interface, version 1, that the bindings use:
// https://dmlc.github.io/dlpack/latest/c_api.html
#pragma once

#include <cstdint>

namespace mixfast {
namespace dlpack {

constexpr const char* kAttribute = "__dlpack_c_exchange_api__";  // of a tensor class: a capsule
constexpr const char* kCapsule = "dlpack_exchange_api";          // that holds a Table and has this name
constexpr uint32_t kMajor = 1;

enum Code : uint8_t { kInt = 0, kUInt = 1, kFloat = 2, kBFloat = 4, kBool = 6 };

struct DLTensor {
  void* data;
  int32_t device_type, device_id;
  int32_t ndim;
  uint8_t code, bits;
  uint16_t lanes;
  int64_t *shape, *strides;  // live as long as the tensor
  uint64_t byte_offset;
};

struct Table {
  uint32_t major, minor;
  Table* older;  // the table of an earlier major version, or null
  void *allocate, *to_managed, *from_managed;
  int (*read)(void* object, DLTensor* out);  // 0, or -1 with a Python exception; null: not there
  int (*current_stream)(int32_t device_type, int32_t device_id, void** out);
};

}  // namespace dlpack
}  // namespace mixfast
