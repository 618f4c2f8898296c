// SPDX-License-Identifier: MIT
// Where a call on a GPU runs. Needs no CUDA header.
#pragma once

namespace mixfast::gpu {

// The current device is restored after the call.
struct Place {
  int device;
  void* stream;
};

}  // namespace mixfast::gpu
