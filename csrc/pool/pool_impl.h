// SPDX-License-Identifier: MIT
// masked_upsample_pool on CPU: the loops over one image, for the instruction set of the including file.
// Shapes    maps [C, P] or [P, C]   C channels, P = h w positions; weights [P]; sums and grads [C]
// Threads   none here; every result has one writer
// Numerics  in float (double for double); a map's sum runs over lanes, each over blocks of kBlock terms, then over
//           pairs of lanes: always in this order, whatever the number of channels
// Checked   tests/ops/test_masked_upsample_pool.py; derivation in docs/maths.md
#pragma once

#include "common/simd.h"
#include "pool/kernels.h"

namespace mixfast {
namespace {

constexpr int64_t kBlock = 32;  // terms added to one running sum before it joins the total

template <class A>
struct Sums {
  vector_t<A> inside, outside;
};

template <class A>
MIXFAST_INLINE void add_product(Sums<A>& sums, vector_t<A> value, vector_t<A> inside, vector_t<A> outside) {
  sums.inside += value * inside;
  sums.outside += value * outside;
}

// Lane sums of one map. kWhole vectors make up a map (their weights then stay in registers), or kWhole = 0: any number,
// the last one reaching back over positions that the one before has covered, with zero weights there. Reaching
// forward instead would read the next channel, whose infinity times zero is NaN.
template <class T, int kWhole>
struct MapSums {
  using A = computed_t<T>;
  static constexpr int64_t kL = kLanes<A>;
  const A *inside, *outside;
  int64_t positions, whole;
  vector_t<A> last_inside, last_outside;
  Sums<A> held[kWhole > 0 ? kWhole : 1];

  MIXFAST_INLINE MapSums make(const A* inside, const A* outside, int64_t positions) {
    MapSums s{inside, outside, positions, positions / kL, {}, {}, {}};
    for (int k = 0; k < kWhole; ++k) s.held[k] = {load(inside + k * kL), load(outside + k * kL)};
    A tail[2][kL] = {};
    const int64_t rest = positions - s.whole * kL;
    const int64_t shift = positions < kL ? 0 : kL - rest;
    for (int64_t r = 0; r < rest; ++r) {
      tail[0][shift + r] = inside[s.whole * kL + r];
      tail[1][shift + r] = outside[s.whole * kL + r];
    }
    s.last_inside = load(tail[0]);
    s.last_outside = load(tail[1]);
    return s;
  }

  inline __attribute__((always_inline)) Sums<A> operator()(const T* map) const {
    Sums<A> total{};
    if (kWhole > 0) {
      for (int k = 0; k < kWhole; ++k) add_product(total, load(map + k * kL), held[k].inside, held[k].outside);
      return total;
    }
    for (int64_t start = 0; start < whole; start += kBlock) {
      Sums<A> block{};
      const int64_t end = start + kBlock < whole ? start + kBlock : whole;
      for (int64_t k = start; k < end; ++k)
        add_product(block, load(map + k * kL), load(inside + k * kL), load(outside + k * kL));
      total.inside += block.inside;
      total.outside += block.outside;
    }
    if (positions < kL) {
      add_product(total, load_first(map, positions), last_inside, last_outside);
    } else if (positions % kL) {
      add_product(total, load(map + positions - kL), last_inside, last_outside);
    }
    return total;
  }
};

// Sums of channels c, c + D, c + 2D, ..., each in its lane once D = 1: every step halves the lanes of a channel and
// doubles the channels of a vector. Channels beyond the last repeat it.
template <int D, class T, int kWhole>
MIXFAST_INLINE Sums<computed_t<T>> sum_channels(const MapSums<T, kWhole>& map_sums, const T* maps, int64_t channel,
                                                int64_t last) {
  using A = computed_t<T>;
  if constexpr (D == kLanes<A>) {
    return map_sums(maps + (channel < last ? channel : last) * map_sums.positions);
  } else {
    const Sums<A> a = sum_channels<2 * D>(map_sums, maps, channel, last);
    const Sums<A> b = sum_channels<2 * D>(map_sums, maps, channel + D, last);
    return {add_pairs<D, A>(a.inside, b.inside), add_pairs<D, A>(a.outside, b.outside)};
  }
}

template <class T, int kWhole>
MIXFAST_INLINE void pool_whole(const T* maps, int64_t positions, int64_t channels, const computed_t<T>* inside,
                               const computed_t<T>* outside, T* sum_inside, T* sum_outside) {
  constexpr int64_t kL = kLanes<computed_t<T>>;
  const auto map_sums = MapSums<T, kWhole>::make(inside, outside, positions);
  int64_t c = 0;
  for (; c + kL <= channels; c += kL) {
    const auto sums = sum_channels<1>(map_sums, maps, c, c + kL);
    store(sum_inside + c, sums.inside);
    store(sum_outside + c, sums.outside);
  }
  if (c < channels) {
    const auto sums = sum_channels<1>(map_sums, maps, c, channels - 1);
    store_first(sum_inside + c, sums.inside, channels - c);
    store_first(sum_outside + c, sums.outside, channels - c);
  }
}

template <class T>
void pool(const void* maps, int64_t positions, int64_t channels, const void* inside, const void* outside,
          void* sum_inside, void* sum_outside) {
  using A = computed_t<T>;
  constexpr int64_t kL = kLanes<A>;
  const auto* f = static_cast<const T*>(maps);
  const auto *in = static_cast<const A*>(inside), *out = static_cast<const A*>(outside);
  auto *to_in = static_cast<T*>(sum_inside), *to_out = static_cast<T*>(sum_outside);
  if (positions == kL) return pool_whole<T, 1>(f, positions, channels, in, out, to_in, to_out);
  if (positions == 2 * kL) return pool_whole<T, 2>(f, positions, channels, in, out, to_in, to_out);
  if (positions == 4 * kL) return pool_whole<T, 4>(f, positions, channels, in, out, to_in, to_out);
  pool_whole<T, 0>(f, positions, channels, in, out, to_in, to_out);
}

// kVectors vectors of neighbouring channels, from `first` on.
template <class T, int kVectors>
MIXFAST_INLINE void pool_strip(const T* first, int64_t positions, int64_t stride, const computed_t<T>* inside,
                               const computed_t<T>* outside, Sums<computed_t<T>>* totals) {
  using A = computed_t<T>;
  for (int v = 0; v < kVectors; ++v) totals[v] = Sums<A>{};
  for (int64_t start = 0; start < positions; start += kBlock) {
    Sums<A> block[kVectors] = {};
    const int64_t end = start + kBlock < positions ? start + kBlock : positions;
    for (int64_t p = start; p < end; ++p)
      for (int v = 0; v < kVectors; ++v)
        add_product(block[v], load(first + p * stride + v * kLanes<A>), fill(inside[p]), fill(outside[p]));
    for (int v = 0; v < kVectors; ++v) {
      totals[v].inside += block[v].inside;
      totals[v].outside += block[v].outside;
    }
  }
}

template <class T>
void pool_last(const void* maps, int64_t positions, int64_t channels, int64_t stride, const void* inside,
               const void* outside, void* sum_inside, void* sum_outside) {
  using A = computed_t<T>;
  constexpr int64_t kL = kLanes<A>;
  constexpr int kStrip = 4;
  const auto* f = static_cast<const T*>(maps);
  const auto *in = static_cast<const A*>(inside), *out = static_cast<const A*>(outside);
  auto *to_in = static_cast<T*>(sum_inside), *to_out = static_cast<T*>(sum_outside);
  Sums<A> sums[kStrip];
  int64_t c = 0;
  for (; c + kStrip * kL <= channels; c += kStrip * kL) {
    pool_strip<T, kStrip>(f + c, positions, stride, in, out, sums);
    for (int v = 0; v < kStrip; ++v) {
      store(to_in + c + v * kL, sums[v].inside);
      store(to_out + c + v * kL, sums[v].outside);
    }
  }
  for (; c + kL <= channels; c += kL) {
    pool_strip<T, 1>(f + c, positions, stride, in, out, sums);
    store(to_in + c, sums[0].inside);
    store(to_out + c, sums[0].outside);
  }
  if (c < channels) {
    Sums<A> total{};
    for (int64_t start = 0; start < positions; start += kBlock) {
      Sums<A> block{};
      const int64_t end = start + kBlock < positions ? start + kBlock : positions;
      for (int64_t p = start; p < end; ++p)
        add_product(block, load_first(f + c + p * stride, channels - c), fill(in[p]), fill(out[p]));
      total.inside += block.inside;
      total.outside += block.outside;
    }
    store_first(to_in + c, total.inside, channels - c);
    store_first(to_out + c, total.outside, channels - c);
  }
}

template <class T, int kWhole>
MIXFAST_INLINE void spread_whole(const T* grad_inside, const T* grad_outside, int64_t positions, int64_t channels,
                                 const computed_t<T>* inside, const computed_t<T>* outside, T* maps) {
  using A = computed_t<T>;
  constexpr int64_t kL = kLanes<A>;
  const auto weights = MapSums<T, kWhole>::make(inside, outside, positions);
  A grad[2][kL];
  for (int64_t first = 0; first < channels; first += kL) {
    const int64_t count = channels - first < kL ? channels - first : kL;
    store(grad[0], count == kL ? load(grad_inside + first) : load_first(grad_inside + first, count));
    store(grad[1], count == kL ? load(grad_outside + first) : load_first(grad_outside + first, count));
    for (int64_t c = 0; c < count; ++c) {
      const vector_t<A> a = fill(grad[0][c]), b = fill(grad[1][c]);
      T* map = maps + (first + c) * positions;
      if (kWhole > 0) {
        for (int k = 0; k < kWhole; ++k) store(map + k * kL, a * weights.held[k].inside + b * weights.held[k].outside);
        continue;
      }
      for (int64_t p = 0; p + kL <= positions; p += kL) store(map + p, a * load(inside + p) + b * load(outside + p));
      if (positions < kL) {
        store_first(map, a * weights.last_inside + b * weights.last_outside, positions);
      } else if (positions % kL) {  // reaching back: the covered positions get the same value again
        const int64_t p = positions - kL;
        store(map + p, a * load(inside + p) + b * load(outside + p));
      }
    }
  }
}

template <class T>
void spread(const void* grad_inside, const void* grad_outside, int64_t positions, int64_t channels, const void* inside,
            const void* outside, void* maps) {
  using A = computed_t<T>;
  constexpr int64_t kL = kLanes<A>;
  const auto *g_in = static_cast<const T*>(grad_inside), *g_out = static_cast<const T*>(grad_outside);
  const auto *in = static_cast<const A*>(inside), *out = static_cast<const A*>(outside);
  auto* to = static_cast<T*>(maps);
  if (positions == kL) return spread_whole<T, 1>(g_in, g_out, positions, channels, in, out, to);
  if (positions == 2 * kL) return spread_whole<T, 2>(g_in, g_out, positions, channels, in, out, to);
  if (positions == 4 * kL) return spread_whole<T, 4>(g_in, g_out, positions, channels, in, out, to);
  spread_whole<T, 0>(g_in, g_out, positions, channels, in, out, to);
}

template <class T>
void spread_last(const void* grad_inside, const void* grad_outside, int64_t positions, int64_t channels, int64_t stride,
                 const void* inside, const void* outside, void* maps) {
  using A = computed_t<T>;
  constexpr int64_t kL = kLanes<A>;
  const auto *g_in = static_cast<const T*>(grad_inside), *g_out = static_cast<const T*>(grad_outside);
  const auto *in = static_cast<const A*>(inside), *out = static_cast<const A*>(outside);
  for (int64_t p = 0; p < positions; ++p) {
    T* row = static_cast<T*>(maps) + p * stride;
    const vector_t<A> a = fill(in[p]), b = fill(out[p]);
    int64_t c = 0;
    for (; c + kL <= channels; c += kL) store(row + c, load(g_in + c) * a + load(g_out + c) * b);
    if (c < channels) {
      const int64_t count = channels - c;
      store_first(row + c, load_first(g_in + c, count) * a + load_first(g_out + c, count) * b, count);
    }
  }
}

template <class T>
constexpr PoolKernels pool_kernels() {
  return {pool<T>, pool_last<T>, spread<T>, spread_last<T>};
}
#define MIXFAST_POOL_KERNELS \
  {pool_kernels<float>(), pool_kernels<double>(), pool_kernels<Half>(), pool_kernels<BFloat16>()}

}  // namespace
}  // namespace mixfast
