// SPDX-License-Identifier: MIT
// The functions of csrc/norm/cuda.h for tests/cuda/test_emulated_norm.py.
#include "driver.h"
#include "norm/cuda.h"

namespace {

using mixfast::Type;
using mixfast::emulator::Call;
using namespace mixfast::gpu::norm;

constexpr mixfast::gpu::Place kPlace{0, nullptr};

Maps maps(Call& call) {
  const int64_t samples = call.integer(), channels = call.integer(), pixels = call.integer(), groups = call.integer();
  const bool channels_last = call.integer() != 0;
  return {samples, channels, pixels, groups, channels_last, static_cast<Type>(call.integer())};
}

// Arguments in the order of csrc/norm/bind_cuda.cpp; the number of the workspace's numbers goes to an int64.
const char* workspace(Call& call) {
  const Maps shape = maps(call);
  *call.buffer<int64_t>() = workspace_numbers(shape);
  return nullptr;
}

const char* forward(Call& call) {
  Forward given{};
  given.maps = maps(call);
  given.x = call.buffer(), given.weight = call.buffer(), given.bias = call.buffer();
  given.running_mean = call.buffer(), given.running_var = call.buffer(), given.residual = call.buffer();
  given.momentum = call.real(), given.eps = call.real(), given.relu = call.integer() != 0;
  given.y = call.buffer(), given.means = call.buffer(), given.inverses = call.buffer();
  given.workspace = call.buffer();
  return mixfast::gpu::norm::forward(kPlace, given);
}

const char* backward(Call& call) {
  Backward given{};
  given.maps = maps(call);
  given.dy = call.buffer(), given.x = call.buffer(), given.y = call.buffer(), given.weight = call.buffer();
  given.means = call.buffer(), given.inverses = call.buffer();
  given.dx = call.buffer(), given.d_residual = call.buffer();
  given.d_weight = call.buffer(), given.d_bias = call.buffer(), given.workspace = call.buffer();
  return mixfast::gpu::norm::backward(kPlace, given);
}

}  // namespace

int main() {
  return mixfast::emulator::serve({{"workspace", workspace}, {"forward", forward}, {"backward", backward}});
}
