// SPDX-License-Identifier: MIT
// mix_views on CPU: an image is copied or blended, then the donor's box copied over it. Threads over images.
#include <algorithm>
#include <cstring>

#include "common/rows.h"
#include "views/cpu.h"

namespace mixfast {
namespace augment {
namespace {

constexpr int64_t kThreadNumbers = 1 << 16;  // worth another thread
constexpr int64_t kBlock = 256;              // numbers of 16 bits that are blended at a time

// share * base + (1 - share) * donor.
template <class T>
void blend(const T* base, const T* donor, T share, int64_t count, T* out) {
  const T rest = 1 - share;
  for (int64_t i = 0; i < count; ++i) out[i] = share * base[i] + rest * donor[i];
}

// Of 16 bits, in float.
template <class S>
void blend_short(const S* base, const S* donor, float share, int64_t count, S* out) {
  float from[kBlock], with[kBlock];
  for (int64_t i = 0; i < count; i += kBlock) {
    const int64_t used = std::min(kBlock, count - i);
    convert(base + i, 1, used, from);
    convert(donor + i, 1, used, with);
    blend(from, with, share, used, from);
    convert_back(from, used, out + i);
  }
}

template <class S>
void mix_one(const Mixture& call, const S* base, const S* donor, const int64_t* box, float share, S* out) {
  const int64_t pixels = call.height * call.width, numbers = call.channels * pixels;
  if (share == 1 || share == 0) {
    std::memcpy(out, share == 1 ? base : donor, numbers * sizeof(S));
  } else {
    if constexpr (sizeof(S) == 2) {
      blend_short(base, donor, share, numbers, out);
    } else {
      blend(base, donor, S(share), numbers, out);
    }
  }
  const auto within = [](int64_t place, int64_t size) { return std::min(std::max<int64_t>(place, 0), size); };
  const int64_t x0 = within(box[0], call.width), x1 = within(box[2], call.width);
  const int64_t y0 = within(box[1], call.height), y1 = within(box[3], call.height);
  if (x0 >= x1) return;
  const int64_t each = call.channels_last ? call.channels : 1, planes = call.channels_last ? 1 : call.channels;
  for (int64_t plane = 0; plane < planes; ++plane) {
    for (int64_t y = y0; y < y1; ++y) {
      const int64_t at = plane * pixels + (y * call.width + x0) * each;
      std::memcpy(out + at, donor + at, (x1 - x0) * each * sizeof(S));
    }
  }
}

template <class S>
void mix_all(const Mixture& call, int threads) {
  const int64_t numbers = call.channels * call.height * call.width;
  const int64_t most = 1 + call.batch * numbers / kThreadNumbers;
  if (most < threads) threads = static_cast<int>(most);
  const auto base = static_cast<const S*>(call.base), donor = static_cast<const S*>(call.donor);
  const auto out = static_cast<S*>(call.out);
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
  for (int64_t i = 0; i < call.batch; ++i) {
    const int64_t at = i * numbers;
    mix_one(call, base + at, donor + at, call.boxes + 4 * i, call.share[i], out + at);
  }
}

}  // namespace

void mix(const Mixture& call, int threads) {
  switch (call.type) {
    case Type::kFloat:
      return mix_all<float>(call, threads);
    case Type::kDouble:
      return mix_all<double>(call, threads);
    case Type::kHalf:
      return mix_all<Half>(call, threads);
    case Type::kBFloat16:
      return mix_all<BFloat16>(call, threads);
  }
}

}  // namespace augment
}  // namespace mixfast
