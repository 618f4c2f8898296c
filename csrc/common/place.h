// SPDX-License-Identifier: MIT
// The device and stream of a call on a GPU. Needs no CUDA header.
#pragma once

namespace mixfast::gpu {

// The current device is restored after the call.
struct Place {
  int device;
  void* stream;
};

}  // namespace mixfast::gpu
