// SPDX-License-Identifier: MIT
// enqueue_ on CUDA: what the bindings call. Needs no CUDA header.
#pragma once

#include "common/place.h"
#include "enqueue/cpu.h"

namespace mixfast::gpu::enqueue {

// Returns an error's description, or null; launches are not waited for.
const char* run(const Place& place, const mixfast::enqueue::Call& call);

}  // namespace mixfast::gpu::enqueue
