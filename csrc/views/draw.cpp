// SPDX-License-Identifier: MIT
// draw_views on CPU: Philox4x32-10 (Salmon et al. 2011) by counter. mixfast/ops/views/_philox.py defines what
// each number means. Compiled without fused multiply-add, so that every backend rounds alike.
#include <algorithm>
#include <cmath>

#include "views/cpu.h"

namespace mixfast {
namespace augment {
namespace {

constexpr int kTries = 10;

struct Numbers {
  uint32_t word[4];

  double uniform(int i) const { return word[i] * 0x1p-32; }
  int64_t among(int i, int64_t count) const {
    return static_cast<int64_t>(word[i] * static_cast<uint64_t>(count) >> 32);
  }
};

struct Stream {
  uint32_t key[2], draw, image, view;

  Numbers block(uint32_t number) const {
    uint32_t c[4] = {draw, image, view, number}, k0 = key[0], k1 = key[1];
    for (int round = 0; round < 10; ++round, k0 += 0x9E3779B9u, k1 += 0xBB67AE85u) {
      const uint64_t p0 = uint64_t{0xD2511F53u} * c[0], p1 = uint64_t{0xCD9E8D57u} * c[2];
      const uint32_t next[4] = {static_cast<uint32_t>(p1 >> 32) ^ c[1] ^ k0, static_cast<uint32_t>(p1),
                                static_cast<uint32_t>(p0 >> 32) ^ c[3] ^ k1, static_cast<uint32_t>(p0)};
      std::copy_n(next, 4, c);
    }
    return {{c[0], c[1], c[2], c[3]}};
  }
};

double exponential(double x) {
  constexpr double kTaylor[10] = {1.0,       1.0,       1.0 / 2,    1.0 / 6,     1.0 / 24,
                                  1.0 / 120, 1.0 / 720, 1.0 / 5040, 1.0 / 40320, 1.0 / 362880};
  x *= 1.0 / 64;
  double power = kTaylor[9];
  for (int k = 8; k >= 0; --k) power = power * x + kTaylor[k];
  for (int i = 0; i < 6; ++i) power *= power;
  return power;
}

void draw_crop(const Stream& stream, const Law& law, int64_t height, int64_t width, float* to) {
  for (int attempt = 0; attempt < kTries; ++attempt) {
    const Numbers n = stream.block(static_cast<uint32_t>(attempt));
    const double area = n.uniform(0) * law.area_range + law.area_low;
    const double ratio = exponential(n.uniform(1) * law.ratio_range + law.ratio_low);
    const double w = std::nearbyint(std::sqrt(area * ratio)), h = std::nearbyint(std::sqrt(area / ratio));
    if (!(w > 0 && w <= static_cast<double>(width) && h > 0 && h <= static_cast<double>(height))) continue;
    to[kTop] = static_cast<float>(n.among(2, height - static_cast<int64_t>(h) + 1));
    to[kLeft] = static_cast<float>(n.among(3, width - static_cast<int64_t>(w) + 1));
    to[kHeight] = static_cast<float>(h);
    to[kWidth] = static_cast<float>(w);
    return;
  }
  for (int i = 0; i < 4; ++i) to[kTop + i] = static_cast<float>(law.central[i]);
}

void draw_rest(const Stream& stream, const Law& law, float* to) {
  const Numbers first = stream.block(kTries), second = stream.block(kTries + 1), third = stream.block(kTries + 2);
  const bool jittered = first.uniform(1) < law.jitter;
  to[kFlip] = first.uniform(0) < law.flip;
  to[kGrey] = first.uniform(2) < law.grey;
  to[kSigma] = 0;
  if (first.uniform(3) < law.blur) to[kSigma] = static_cast<float>(law.sigma_low + second.uniform(1) * law.sigma_range);
  to[kSolarise] = second.uniform(0) < law.solarise;
  for (int i = 0; i < 4; ++i) {
    const double value = law.strength[i][0] + third.uniform(i) * law.strength[i][1];
    to[kBrightness + i] = jittered ? static_cast<float>(value) : i < 3 ? 1.0f : 0.0f;
  }
  const int order = static_cast<int>(second.among(2, 24)), permutation = order >> 2;
  const int one = permutation >> 1, low = one == 0, high = 3 - one - low;
  const bool swapped = permutation & 1;
  to[kOrder] = static_cast<float>(one);
  to[kOrder + 1] = static_cast<float>(swapped ? high : low);
  to[kOrder + 2] = static_cast<float>(swapped ? low : high);
  to[kHuePlace] = static_cast<float>(order & 3);
}

}  // namespace

void draw(int64_t* state, int64_t batch, int64_t height, int64_t width, const Law* laws, int64_t views,
          float* parameters) {
  const uint64_t key = static_cast<uint64_t>(state[0]);
  Stream stream = {
      {static_cast<uint32_t>(key), static_cast<uint32_t>(key >> 32)}, static_cast<uint32_t>(state[1]), 0, 0};
  for (int64_t v = 0; v < views; ++v) {
    for (int64_t i = 0; i < batch; ++i, parameters += kColumns) {
      stream.view = static_cast<uint32_t>(v);
      stream.image = static_cast<uint32_t>(i);
      draw_crop(stream, laws[v], height, width, parameters);
      draw_rest(stream, laws[v], parameters);
    }
  }
  ++state[1];
}

}  // namespace augment
}  // namespace mixfast
