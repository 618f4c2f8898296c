// SPDX-License-Identifier: MIT
// A view on CPU; included once for each instruction set, with AUGMENT_ISA as its namespace.
//
// Blocks of rows small enough for the level-1 cache are cropped and coloured while they are there, up to the contrast,
// which needs the mean of them all; a second pass over the view does the rest. Without contrast there is no second.
#include <algorithm>
#include <cmath>
#include <cstdint>

#include "common/simd.h"
#include "views/colour_impl.h"
#include "views/crop_impl.h"
#include "views/view.h"

namespace mixfast {
namespace augment {
namespace AUGMENT_ISA {
namespace {

constexpr int64_t kBlockPixels = 1024;
constexpr float kByte = 1.0f / 255;

// Lane l of part `part` of the triples of three vectors: first of (red, green), where blue's lanes hold anything.
constexpr int of_two(int lane, int part, int lanes) {
  const int at = part * lanes + lane;
  return at / 3 + (at % 3 == 1 ? lanes : 0);
}
constexpr int with_third(int lane, int part, int lanes) {
  const int at = part * lanes + lane;
  return at % 3 == 2 ? lanes + at / 3 : lane;
}
template <int part, int... L>
MIXFAST_INLINE Float triples(const Pixels& p, Lanes<L...>) {
  using Index = LaneIndex<float>::type;
  const Float two = MIXFAST_SHUFFLE(p.red, p.green, Index, of_two(L, part, sizeof...(L))...);
  return MIXFAST_SHUFFLE(two, p.blue, Index, with_third(L, part, sizeof...(L))...);
}

template <class T>
MIXFAST_INLINE void write(const Pixels& p, int64_t at, int64_t count, const Options& options, T* out) {
  if (options.channels_last) {
    using All = CountLanes<kFloats>::type;
    T* const to = out + 3 * at;
    const Float parts[3] = {triples<0>(p, All{}), triples<1>(p, All{}), triples<2>(p, All{})};
    for (int part = 0; part < 3; ++part) {
      const int64_t left = 3 * count - part * kFloats;
      if (left >= kFloats) {
        store(to + part * kFloats, parts[part]);
      } else if (left > 0) {
        store_first(to + part * kFloats, parts[part], left);
      }
    }
    return;
  }
  const Float values[3] = {p.red, p.green, p.blue};
  for (int channel = 0; channel < 3; ++channel) {
    T* const to = out + channel * options.pixels() + at;
    count == kFloats ? store(to, values[channel]) : store_first(to, values[channel], count);
  }
}

// Steps, solarise and normalise of pixels [first, last), written to the view.
template <class T>
void finish(const Options& options, const float* planes, int64_t first, int64_t last, const Step* steps, int number,
            bool solarise, T* out) {
  for (int64_t i = first; i < last; i += kFloats) {
    Pixels p = applied(load_three(planes + i, padded(options.pixels())), steps, number);
    const auto written = [&](Float value, int channel) {
      if (solarise) value = value >= 0.5f ? 1.0f - value : value;
      return value * options.scale[channel] + options.offset[channel];
    };
    p = {written(p.red, 0), written(p.green, 1), written(p.blue, 2)};
    write(p, i, std::min<int64_t>(kFloats, last - i), options, out);
  }
}

// One half of the kernel, its taps as far as they change a float; how far that is.
inline int64_t blur_kernel(float sigma, int64_t reach, float* kernel) {
  double sum = 1;
  for (int64_t d = 1; d <= reach; ++d) sum += 2 * std::exp(-0.5 * static_cast<double>(d * d) / (double(sigma) * sigma));
  int64_t far = 0;
  for (int64_t d = 0; d <= reach; ++d) {
    kernel[d] = static_cast<float>(std::exp(-0.5 * static_cast<double>(d * d) / (double(sigma) * sigma)) / sum);
    if (kernel[d] > 1e-9f) far = d;
  }
  return far;
}

MIXFAST_INLINE int64_t reflected(int64_t place, int64_t size) {
  return place < 0 ? -place : place >= size ? 2 * (size - 1) - place : place;
}

// Gaussian, with reflected borders: down the columns into scratch.plane, then along its rows and back.
inline void blur(const Options& options, float sigma, const Scratch& scratch) {
  const int64_t height = options.height, width = options.width;
  float* const kernel = scratch.kernel;
  const int64_t reach = blur_kernel(sigma, options.reach, kernel);
  float* const line = scratch.line;
  for (int channel = 0; channel < 3; ++channel) {
    float* const plane = scratch.planes + channel * padded(options.pixels());
    for (int64_t y = 0; y < height; ++y) {
      for (int64_t x = 0; x < width; x += kFloats) {
        Float sum = load(plane + y * width + x) * kernel[0];
        for (int64_t d = 1; d <= reach; ++d) {
          const Float two =
              load(plane + reflected(y - d, height) * width + x) + load(plane + reflected(y + d, height) * width + x);
          sum += two * kernel[d];
        }
        store(scratch.plane + y * width + x, sum);
      }
    }
    for (int64_t y = 0; y < height; ++y) {
      const float* const row = scratch.plane + y * width;
      std::copy_n(row, width, line + reach);
      for (int64_t d = 1; d <= reach; ++d) {
        line[reach - d] = row[d];
        line[reach + width - 1 + d] = row[width - 1 - d];
      }
      for (int64_t x = 0; x < width; x += kFloats) {
        Float sum = load(line + reach + x) * kernel[0];
        for (int64_t d = 1; d <= reach; ++d)
          sum += (load(line + reach + x - d) + load(line + reach + x + d)) * kernel[d];
        store(plane + y * width + x, sum);
      }
    }
  }
}

// The whole image in [0, 1], coloured, into scratch.image.
inline void colour_image(const Options& options, const uint8_t* image, Steps steps, float* planes) {
  const int64_t count = options.image_pixels(), stride = padded(count);
  for (int channel = 0; channel < 3; ++channel) {
    const uint8_t* const from = image + channel * count;
    float* const to = planes + channel * stride;
    int64_t i = 0;
    for (; i + kFloats <= count; i += kFloats) store(to + i, load_pixels(from + i) * kByte);
    for (; i < count; ++i) to[i] = static_cast<float>(from[i]) * kByte;
  }
  colour(planes, stride, count, steps.each, steps.contrast);
  if (steps.contrast == steps.count) return;
  const double mean = grey_sum(planes, stride, count) / static_cast<double>(count);
  Step* const after = steps.each + steps.contrast;
  after->offset = (1 - after->factor) * static_cast<float>(mean);
  colour(planes, stride, count, after, steps.count - steps.contrast);
}

// The view of an image of bytes, or of floats in [0, 1].
template <class T, class S>
void render(const Options& options, const S* image, int64_t stride, const float* how, Steps steps,
            const Scratch& scratch, T* out) {
  const auto axis = [&](int which, int64_t in, int64_t size, bool flip, float unit) {
    return make_axis(how[kTop + which], how[kHeight + which], in, size, options.bicubic, flip, unit, padded(size),
                     scratch.places[which], scratch.weights[which]);
  };
  const Axis rows = axis(0, options.image_height, options.height, false, sizeof(S) == 1 ? kByte : 1.0f);
  const Axis columns = axis(1, options.image_width, options.width, how[kFlip] != 0, 1.0f);
  const bool contrast = steps.contrast < steps.count, blurred = options.reach > 0 && how[kSigma] > 0;
  const bool solarise = how[kSolarise] != 0;
  const int64_t pixels = options.pixels(), apart = padded(pixels);
  const int64_t block = std::max<int64_t>(1, kBlockPixels / options.width);
  double sum = 0;
  for (int64_t y = 0; y < options.height; y += block) {
    const int64_t last = std::min(options.height, y + block), first = y * options.width;
    const int64_t count = (last - y) * options.width;
    float* const here = scratch.planes + first;
    options.bicubic ? crop_rows<4>(options, image, stride, rows, columns, y, last, scratch.line, scratch.planes)
                    : crop_rows<2>(options, image, stride, rows, columns, y, last, scratch.line, scratch.planes);
    if (!contrast && !blurred) {
      finish(options, scratch.planes, first, first + count, steps.each, steps.count, solarise, out);
      continue;
    }
    colour(here, apart, count, steps.each, steps.contrast);
    if (contrast) sum += grey_sum(here, apart, count);
  }
  if (!contrast && !blurred) return;
  Step* after = steps.each + steps.contrast;
  int number = steps.count - steps.contrast;
  if (contrast) after->offset = (1 - after->factor) * static_cast<float>(sum / static_cast<double>(pixels));
  if (blurred) {
    colour(scratch.planes, apart, pixels, after, number);
    blur(options, how[kSigma], scratch);
    number = 0;
  }
  finish(options, scratch.planes, 0, pixels, after, number, solarise, out);
}

template <class T>
void view_of(const Options& options, const uint8_t* image, const float* how, const Scratch& scratch, T* out) {
  Steps steps = make_steps(how, options.grey_first);
  if (!options.colour_first || steps.count == 0) {
    return render(options, image, options.image_pixels(), how, steps, scratch, out);
  }
  colour_image(options, image, steps, scratch.image);
  steps.count = steps.contrast = 0;
  render(options, scratch.image, padded(options.image_pixels()), how, steps, scratch, out);
}

}  // namespace

void view(const Options& options, const uint8_t* image, const float* how, const Scratch& scratch, void* out) {
  switch (options.type) {
    case Type::kHalf:
      return view_of(options, image, how, scratch, static_cast<Half*>(out));
    case Type::kBFloat16:
      return view_of(options, image, how, scratch, static_cast<BFloat16*>(out));
    default:
      return view_of(options, image, how, scratch, static_cast<float*>(out));
  }
}

}  // namespace AUGMENT_ISA
}  // namespace augment
}  // namespace mixfast
