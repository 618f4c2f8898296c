// SPDX-License-Identifier: MIT
// The kernels of split batch norm on CPU, for the instruction set of the including file, in namespace SPLIT_NORM_ISA.
//
// Lanes  a tile of lanes over many rows: sums stay in registers, factors too
// Row    rows of one channel: four sums of vectors, added up at the end
#pragma once

#include "common/simd.h"
#include "norm/kernels.h"

namespace mixfast {
namespace splitnorm {
namespace {

template <class T>
using Reals = vector_t<computed_t<T>>;

template <class T>
MIXFAST_INLINE vector_t<float> rounded(vector_t<float> value, T) {
  return widen(narrow(value, T{}), T{});
}
MIXFAST_INLINE vector_t<float> rounded(vector_t<float> value, float) { return value; }
MIXFAST_INLINE vector_t<double> rounded(vector_t<double> value, double) { return value; }

// ReLU and its gradient as torch has them: not a number stays so, and stops no gradient.
template <class Vector>
MIXFAST_INLINE Vector rectified(Vector value) {
  return value < 0 ? Vector{} : value;
}
template <class Vector>
MIXFAST_INLINE Vector stopped(Vector grad, Vector result) {
  return result <= 0 ? Vector{} : grad;
}

// Calls step(offset) with the first element of each row.
template <class Step>
MIXFAST_INLINE void each_row(const Piece& piece, Step step) {
  for (int64_t run = 0; run < piece.runs; ++run) {
    int64_t offset = piece.start + run * piece.run_stride;
    for (int64_t row = 0; row < piece.rows; ++row, offset += piece.row_stride) step(offset);
  }
}

// V whole vectors of elements, or, for V = 0, the first `count` lanes of one.
template <class T, int V>
struct Block {
  static constexpr int kVectors = V > 0 ? V : 1;
  int64_t count;

  MIXFAST_INLINE Reals<T> get(const Block& block, const T* from, int v) {
    return V > 0 ? load(from + v * kLanes<computed_t<T>>) : load_first(from, block.count);
  }
  MIXFAST_INLINE void put(const Block& block, T* to, int v, Reals<T> value) {
    V > 0 ? store(to + v * kLanes<computed_t<T>>, value) : store_first(to, value, block.count);
  }
};

// Vector v of the block at `at`: of y, made of the norm's vector, and of the gradient that arrives at the norm.
template <bool kAdd, bool kRelu, class Block, class T>
MIXFAST_INLINE Reals<T> finished(const Block& block, Reals<T> normed, const T* residual, int64_t at, int v) {
  if constexpr (kAdd) normed = rounded(normed, T{}) + Block::get(block, residual + at, v);
  return kRelu ? rectified(normed) : normed;
}
template <bool kMask, class Block, class T>
MIXFAST_INLINE Reals<T> arriving(const Block& block, const T* dy, const T* y, int64_t at, int v) {
  const Reals<T> grad = Block::get(block, dy + at, v);  // zero in lanes without an element
  if constexpr (kMask) return stopped(grad, Block::get(block, y + at, v));
  return grad;
}

#define MIXFAST_EACH_VECTOR _Pragma("GCC unroll 4") for (int v = 0; v < Block::kVectors; ++v)

template <class T>
struct Lanes {
  using Real = computed_t<T>;
  static constexpr int64_t kWidth = kLanes<Real>;

  // Calls step(block, lane) with the widest blocks from `lane` on, and a last one of what is left.
  template <class Step>
  MIXFAST_INLINE void in_blocks(int64_t width, Step step) {
    int64_t lane = 0;
    for (; lane + 4 * kWidth <= width; lane += 4 * kWidth) step(Block<T, 4>{}, lane);
    for (; lane + kWidth <= width; lane += kWidth) step(Block<T, 1>{}, lane);
    if (lane < width) step(Block<T, 0>{width - lane}, lane);
  }

  static void moments(const void* data, const Piece& piece, Real* moments) {
    const Real count = static_cast<Real>(piece.runs * piece.rows);
    in_blocks(piece.width, [&](auto block, int64_t lane) {
      using Block = decltype(block);
      const T* const x = static_cast<const T*>(data) + lane;
      Reals<T> means[Block::kVectors] = {}, sums[Block::kVectors] = {}, squares[Block::kVectors] = {};
      each_row(piece, [&](int64_t row) { MIXFAST_EACH_VECTOR means[v] += Block::get(block, x + row, v); });
      MIXFAST_EACH_VECTOR means[v] /= count;
      each_row(piece, [&](int64_t row) {
        MIXFAST_EACH_VECTOR {
          const Reals<T> difference = Block::get(block, x + row, v) - means[v];
          sums[v] += difference;
          squares[v] += difference * difference;
        }
      });
      MIXFAST_EACH_VECTOR {
        Real* const to = moments + lane + v * kWidth;
        store(to, means[v]);
        store(to + kTile, sums[v]);
        store(to + 2 * kTile, squares[v]);
      }
    });
  }

  template <bool kAdd, bool kRelu>
  static void normalise(const void* data, const void* added, void* result, const Piece& piece, const Real* factors) {
    in_blocks(piece.width, [&](auto block, int64_t lane) {
      using Block = decltype(block);
      const T *const x = static_cast<const T*>(data) + lane, *const residual = static_cast<const T*>(added);
      T* const y = static_cast<T*>(result) + lane;
      Reals<T> mean[Block::kVectors], scale[Block::kVectors], shift[Block::kVectors];
      MIXFAST_EACH_VECTOR {
        const Real* const from = factors + lane + v * kWidth;
        mean[v] = load(from), scale[v] = load(from + kTile), shift[v] = load(from + 2 * kTile);
      }
      each_row(piece, [&](int64_t row) {
        MIXFAST_EACH_VECTOR {
          const Reals<T> normed = (Block::get(block, x + row, v) - mean[v]) * scale[v] + shift[v];
          Block::put(block, y + row, v, finished<kAdd, kRelu>(block, normed, residual, row + lane, v));
        }
      });
    });
  }

  template <bool kMask, bool kWrite>
  static void products(const Upstream& upstream, const void* data, void* masked, const Piece& piece, const Real* means,
                       Real* sums) {
    const T *const dy = static_cast<const T*>(upstream.dy), *const y = static_cast<const T*>(upstream.y);
    in_blocks(piece.width, [&](auto block, int64_t lane) {
      using Block = decltype(block);
      const T* const x = static_cast<const T*>(data) + lane;
      Reals<T> mean[Block::kVectors], plain[Block::kVectors] = {}, weighted[Block::kVectors] = {};
      MIXFAST_EACH_VECTOR mean[v] = load(means + lane + v * kWidth);
      each_row(piece, [&](int64_t row) {
        MIXFAST_EACH_VECTOR {
          const Reals<T> grad = arriving<kMask>(block, dy, y, row + lane, v);
          if constexpr (kWrite) Block::put(block, static_cast<T*>(masked) + row + lane, v, grad);
          plain[v] += grad;
          weighted[v] += grad * (Block::get(block, x + row, v) - mean[v]);
        }
      });
      MIXFAST_EACH_VECTOR {
        store(sums + lane + v * kWidth, plain[v]);
        store(sums + kTile + lane + v * kWidth, weighted[v]);
      }
    });
  }

  template <bool kMask>
  static void gradient(const Upstream& upstream, const void* data, void* result, const Piece& piece,
                       const Real* factors) {
    const T *const dy = static_cast<const T*>(upstream.dy), *const y = static_cast<const T*>(upstream.y);
    in_blocks(piece.width, [&](auto block, int64_t lane) {
      using Block = decltype(block);
      const T* const x = static_cast<const T*>(data) + lane;
      T* const dx = static_cast<T*>(result) + lane;
      Reals<T> mean[Block::kVectors], own[Block::kVectors], scale[Block::kVectors], shift[Block::kVectors];
      MIXFAST_EACH_VECTOR {
        const Real* const from = factors + lane + v * kWidth;
        mean[v] = load(from), own[v] = load(from + kTile);
        scale[v] = load(from + 2 * kTile), shift[v] = load(from + 3 * kTile);
      }
      each_row(piece, [&](int64_t row) {
        MIXFAST_EACH_VECTOR {
          const Reals<T> part = arriving<kMask>(block, dy, y, row + lane, v) * scale[v] + shift[v];
          Block::put(block, dx + row, v, (Block::get(block, x + row, v) - mean[v]) * own[v] + part);
        }
      });
    });
  }
};

template <class T>
struct Row {
  using Real = computed_t<T>;
  static constexpr int64_t kWidth = kLanes<Real>;

  // Calls step(block, offset) with the widest blocks of all rows, and with what is left of each.
  template <class Step>
  MIXFAST_INLINE void in_blocks(const Piece& piece, Step step) {
    each_row(piece, [&](int64_t row) {
      Lanes<T>::in_blocks(piece.width, [&](auto block, int64_t lane) { step(block, row + lane); });
    });
  }

  // The lanes of a block that hold elements; the others become zero.
  template <int V>
  MIXFAST_INLINE Reals<T> only(const Block<T, V>& block, Reals<T> value) {
    if (V == 0) {
      for (int64_t lane = block.count; lane < kWidth; ++lane) value[lane] = 0;
    }
    return value;
  }

  MIXFAST_INLINE Real total(const Reals<T> (&sums)[4]) {
    const Reals<T> all = (sums[0] + sums[1]) + (sums[2] + sums[3]);
    Real result = 0;
    for (int64_t lane = 0; lane < kWidth; ++lane) result += all[lane];
    return result;
  }

  static void moments(const void* data, const Piece& piece, Real* moments) {
    const T* const x = static_cast<const T*>(data);
    Reals<T> means[4] = {}, sums[4] = {}, squares[4] = {};
    in_blocks(piece, [&](auto block, int64_t at) {
      using Block = decltype(block);
      MIXFAST_EACH_VECTOR means[v] += Block::get(block, x + at, v);
    });
    const Real mean = total(means) / static_cast<Real>(piece.runs * piece.rows * piece.width);
    const Reals<T> all = fill(mean);
    in_blocks(piece, [&](auto block, int64_t at) {
      using Block = decltype(block);
      MIXFAST_EACH_VECTOR {
        const Reals<T> difference = only(block, Block::get(block, x + at, v) - all);
        sums[v] += difference;
        squares[v] += difference * difference;
      }
    });
    moments[0] = mean;
    moments[kTile] = total(sums);
    moments[2 * kTile] = total(squares);
  }

  template <bool kAdd, bool kRelu>
  static void normalise(const void* data, const void* added, void* result, const Piece& piece, const Real* factors) {
    const T *const x = static_cast<const T*>(data), *const residual = static_cast<const T*>(added);
    T* const y = static_cast<T*>(result);
    const Reals<T> mean = fill(factors[0]), scale = fill(factors[kTile]), shift = fill(factors[2 * kTile]);
    in_blocks(piece, [&](auto block, int64_t at) {
      using Block = decltype(block);
      MIXFAST_EACH_VECTOR {
        const Reals<T> normed = (Block::get(block, x + at, v) - mean) * scale + shift;
        Block::put(block, y + at, v, finished<kAdd, kRelu>(block, normed, residual, at, v));
      }
    });
  }

  template <bool kMask, bool kWrite>
  static void products(const Upstream& upstream, const void* data, void* masked, const Piece& piece, const Real* means,
                       Real* sums) {
    const T *const dy = static_cast<const T*>(upstream.dy), *const y = static_cast<const T*>(upstream.y);
    const T* const x = static_cast<const T*>(data);
    const Reals<T> mean = fill(means[0]);
    Reals<T> plain[4] = {}, weighted[4] = {};
    in_blocks(piece, [&](auto block, int64_t at) {
      using Block = decltype(block);
      MIXFAST_EACH_VECTOR {
        const Reals<T> grad = arriving<kMask>(block, dy, y, at, v);
        if constexpr (kWrite) Block::put(block, static_cast<T*>(masked) + at, v, grad);
        plain[v] += grad;
        weighted[v] += grad * (Block::get(block, x + at, v) - mean);
      }
    });
    sums[0] = total(plain);
    sums[kTile] = total(weighted);
  }

  template <bool kMask>
  static void gradient(const Upstream& upstream, const void* data, void* result, const Piece& piece,
                       const Real* factors) {
    const T *const dy = static_cast<const T*>(upstream.dy), *const y = static_cast<const T*>(upstream.y);
    const T* const x = static_cast<const T*>(data);
    T* const dx = static_cast<T*>(result);
    const Reals<T> mean = fill(factors[0]), own = fill(factors[kTile]);
    const Reals<T> scale = fill(factors[2 * kTile]), shift = fill(factors[3 * kTile]);
    in_blocks(piece, [&](auto block, int64_t at) {
      using Block = decltype(block);
      MIXFAST_EACH_VECTOR {
        const Reals<T> part = arriving<kMask>(block, dy, y, at, v) * scale + shift;
        Block::put(block, dx + at, v, (Block::get(block, x + at, v) - mean) * own + part);
      }
    });
  }
};

#undef MIXFAST_EACH_VECTOR

// The kernels of one of the two orders, by what a call wants.
template <class Order, class Real>
void normalise(const void* x, const void* residual, void* y, const Piece& piece, const Real* factors, bool relu) {
  const auto run = residual ? (relu ? Order::template normalise<true, true> : Order::template normalise<true, false>)
                            : (relu ? Order::template normalise<false, true> : Order::template normalise<false, false>);
  run(x, residual, y, piece, factors);
}
template <class Order, class Real>
void products(const Upstream& upstream, const void* x, void* masked, const Piece& piece, const Real* means,
              Real* sums) {
  const auto run = masked       ? Order::template products<true, true>
                   : upstream.y ? Order::template products<true, false>
                                : Order::template products<false, false>;
  run(upstream, x, masked, piece, means, sums);
}
template <class Order, class Real>
void gradient(const Upstream& upstream, const void* x, void* dx, const Piece& piece, const Real* factors) {
  const auto run = upstream.y ? Order::template gradient<true> : Order::template gradient<false>;
  run(upstream, x, dx, piece, factors);
}

template <class Order, class Real>
Kernels<Real> kernels_in() {
  return {Order::moments, normalise<Order, Real>, products<Order, Real>, gradient<Order, Real>};
}
template <class T>
Kernels<computed_t<T>> kernels_of(bool channels_last) {
  return channels_last ? kernels_in<Lanes<T>, computed_t<T>>() : kernels_in<Row<T>, computed_t<T>>();
}

}  // namespace

namespace SPLIT_NORM_ISA {

Kernels<float> float_kernels(Type type, bool channels_last) {
  if (type == Type::kHalf) return kernels_of<Half>(channels_last);
  return type == Type::kBFloat16 ? kernels_of<BFloat16>(channels_last) : kernels_of<float>(channels_last);
}

Kernels<double> double_kernels(bool channels_last) { return kernels_of<double>(channels_last); }

}  // namespace SPLIT_NORM_ISA
}  // namespace splitnorm
}  // namespace mixfast
