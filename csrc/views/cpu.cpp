// SPDX-License-Identifier: MIT
// augment_views on CPU: threads over images, whose views one thread makes while the bytes are in its cache. The same
// bits for any number of threads.
#include "views/cpu.h"

#include <memory>

namespace mixfast {
namespace augment {
namespace {

constexpr int64_t kThreadPixels = 1 << 13;  // worth another thread

decltype(&baseline::view) view_for(Isa isa) {
#if defined(__x86_64__)
  if (isa == Isa::kAvx512) return avx512::view;
  if (isa == Isa::kAvx2) return avx2::view;
#endif
  (void)isa;
  return baseline::view;
}

}  // namespace

int64_t run(const Call& call, int threads, Isa isa) {
  if (call.index != nullptr) {
    for (int64_t i = 0; i < call.batch; ++i) {
      if (call.index[i] < 0 || call.index[i] >= call.count) return i;
    }
  }
  const auto view = view_for(isa);
  const Options& options = call.options;
  const int64_t image = 3 * options.image_pixels(),
                size = 3 * options.pixels() * (options.type == Type::kFloat ? 4 : 2);
  const int64_t most = 1 + call.views * call.batch * options.pixels() / kThreadPixels;
  if (most < threads) threads = static_cast<int>(most);
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    Scratch scratch;
    const std::unique_ptr<float[]> memory(new float[carve(options, nullptr, &scratch)]);
    carve(options, memory.get(), &scratch);
#pragma omp for schedule(static)
    for (int64_t i = 0; i < call.batch; ++i) {
      const uint8_t* const from = call.images + (call.index == nullptr ? i : call.index[i]) * image;
      for (int64_t v = 0; v < call.views; ++v) {
        const int64_t at = v * call.batch + i;
        view(options, from, call.parameters + at * kColumns, scratch, static_cast<char*>(call.out) + at * size);
      }
    }
  }
  return -1;
}

}  // namespace augment
}  // namespace mixfast
