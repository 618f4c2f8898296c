// SPDX-License-Identifier: MIT
// The function of csrc/enqueue/cuda.h for tests/cuda/test_emulated_enqueue.py.
#include "driver.h"
#include "enqueue/cuda.h"

namespace {

using mixfast::Type;
using mixfast::emulator::Call;

// Types, whether to normalise and D, then for each queue: its rows, the keys' rows, queue, keys and pointer.
const char* enqueue(Call& call) {
  mixfast::enqueue::Call to = {};
  to.rings.resize(call.integer());
  to.queue_type = static_cast<Type>(call.integer());
  to.key_type = static_cast<Type>(call.integer());
  to.normalize = call.integer() != 0;
  to.dim = call.integer();
  for (mixfast::enqueue::Ring& ring : to.rings) {
    ring.size = call.integer();
    ring.rows = call.integer();
    ring.queue = call.buffer();
    ring.keys = call.buffer();
    ring.pointer = call.buffer<int64_t>();
  }
  return mixfast::gpu::enqueue::run({0, nullptr}, to);
}

}  // namespace

int main() { return mixfast::emulator::serve({{"enqueue", enqueue}}); }
