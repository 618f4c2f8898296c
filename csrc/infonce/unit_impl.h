// SPDX-License-Identifier: MIT
// The kernel of multi_queue_infonce on CPU, for the instruction set of the including file, in namespace INFONCE_ISA.
//
// Both products have the same form: a panel of rows in vectors, times scalars read from the keys where they lie.
//     scores  S[j][r] = sum_d x_j[d] Q[d][r]          keys j, rows r of the panel
//     mean    O[d][r] = O[d][r] 2^(m_old - m_new) + sum_j x_j[d] P[j][r]
// So a tile of keys serves as keys and as values without being transposed or packed; only 16-bit ones are converted.
// A block of kBlock x (1 or 2) vectors of results stays in registers during the sum. Sums over keys have two levels,
// within a tile and over tiles, which also keeps the rounding error small.
#pragma once

#include "common/exp2.h"
#include "common/product.h"
#include "common/rows.h"
#include "infonce/unit.h"

namespace mixfast {
namespace infonce {
namespace {

template <class T>
using Vector = WideVector<T>;

// A column of the panel: VECTORS vectors of rows. Scores of BLOCK keys, and their maximum so far.
template <class T, int BLOCK, int VECTORS>
__attribute__((noinline)) void score(const T* keys, int64_t stride, const T* queries, int64_t dim, T* scores,
                                     Vector<T>* max) {
  Vector<T> sums[BLOCK][VECTORS];
  multiply<T, BLOCK, VECTORS, false>(keys, stride, queries, kPanelRows, dim, sums);
#pragma GCC unroll 2
  for (int v = 0; v < VECTORS; ++v) {
    Vector<T> largest = max[v];
#pragma GCC unroll 16
    for (int i = 0; i < BLOCK; ++i) {
      largest = largest > sums[i][v] ? largest : sums[i][v];
      put(scores + i * kPanelRows + v * kWidth<T>, sums[i][v]);
    }
    max[v] = largest;
  }
}

// BLOCK dimensions of the weighted mean: rescaled, plus what the keys of this tile add.
template <class T, int BLOCK, int VECTORS>
__attribute__((noinline)) void accumulate(const T* keys, int64_t stride, const T* weights, int64_t count, T* mean,
                                          const Vector<T>* rescale) {
  Vector<T> sums[BLOCK][VECTORS];
  multiply<T, BLOCK, VECTORS, true>(keys, stride, weights, kPanelRows, count, sums);
#pragma GCC unroll 16
  for (int i = 0; i < BLOCK; ++i)
#pragma GCC unroll 2
    for (int v = 0; v < VECTORS; ++v) {
      T* to = mean + i * kPanelRows + v * kWidth<T>;
      put(to, get(to) * rescale[v] + sums[i][v]);
    }
}

// Scores become weights 2^(s - max). Returns their sum over the keys of the tile.
template <class T, int VECTORS>
MIXFAST_INLINE void weigh(T* scores, int64_t count, const T* scale, const Vector<T>* max, bool keep, Vector<T>* sum) {
  for (int v = 0; v < VECTORS; ++v) {
    const Vector<T> factor = get(scale + v * kWidth<T>), shift = max[v];
    T* column = scores + v * kWidth<T>;
    Vector<T> even = Vector<T>{}, odd = Vector<T>{};
    const auto weigh_one = [&](int64_t key) {
      const Vector<T> weight = exp2_of<T>(exponent_of<T>(get(column + key * kPanelRows), factor, shift));
      if (keep) put(column + key * kPanelRows, weight);
      return weight;
    };
    int64_t key = 0;
    for (; key + 2 <= count; key += 2) {
      even += weigh_one(key);
      odd += weigh_one(key + 1);
    }
    if (key < count) even += weigh_one(key);
    sum[v] = even + odd;
  }
}

// One tile of keys against VECTORS vectors of rows of a panel; all pointers are to the first of these rows.
template <class T, int VECTORS>
void update(const T* keys, int64_t stride, int64_t count, int64_t dim, const T* queries, const T* scale, T* max, T* sum,
            T* mean, T* scores) {
  Vector<T> largest[VECTORS], rescale[VECTORS], added[VECTORS];
  for (int v = 0; v < VECTORS; ++v) largest[v] = Vector<T>{} + Wide<T>::kLowest;
  in_blocks(count, [&](auto block, int64_t key) {
    score<T, decltype(block)::value, VECTORS>(keys + key * stride, stride, queries, dim, scores + key * kPanelRows,
                                              largest);
  });
  for (int v = 0; v < VECTORS; ++v) {
    const Vector<T> old = get(max + v * kWidth<T>), tile = shift_of<T>(largest[v], get(scale + v * kWidth<T>));
    largest[v] = old > tile ? old : tile;
    rescale[v] = exp2_of<T>(old - largest[v]);
    put(max + v * kWidth<T>, largest[v]);
  }
  weigh<T, VECTORS>(scores, count, scale, largest, mean != nullptr, added);
  for (int v = 0; v < VECTORS; ++v) {
    put(sum + v * kWidth<T>, get(sum + v * kWidth<T>) * rescale[v] + added[v]);
  }
  if (mean == nullptr) return;
  in_blocks(dim, [&](auto block, int64_t d) {
    accumulate<T, decltype(block)::value, VECTORS>(keys + d, stride, scores, count, mean + d * kPanelRows, rescale);
  });
}

// The tile of keys as T with adjacent elements: where it lies, or a converted copy.
template <class T>
const T* tile_of(const Matrix& keys, int64_t first, int64_t count, int64_t dim, T* copy, int64_t* stride) {
  const bool same = keys.type == (sizeof(T) == sizeof(float) ? Type::kFloat : Type::kDouble);
  if (same && keys.column_stride == 1) {
    *stride = keys.row_stride;
    return static_cast<const T*>(keys.data) + first * keys.row_stride;
  }
  const bool transposed = keys.row_stride == 1 && keys.column_stride != 1;  // stored as [D, K]: read along the keys
  for (int64_t d = 0; transposed && d < dim; ++d) {
    T column[kTileKeys];
    convert(keys.data, keys.type, first + d * keys.column_stride, 1, count, column);
    for (int64_t k = 0; k < count; ++k) copy[k * dim + d] = column[k];
  }
  for (int64_t k = 0; !transposed && k < count; ++k) {
    convert(keys.data, keys.type, (first + k) * keys.row_stride, keys.column_stride, dim, copy + k * dim);
  }
  *stride = dim;
  return copy;
}

template <class T>
void pack_queries(const Unit<T>& unit, T* panels, T* row_values) {
  for (int64_t r = 0; r < panels_of(unit.rows) * kPanelRows; ++r) {
    T* lane = panels + r / kPanelRows * unit.dim * kPanelRows + r % kPanelRows;
    if (r < unit.rows) convert(unit.queries[r], unit.query_type, 0, 1, unit.dim, row_values);
    for (int64_t d = 0; d < unit.dim; ++d) lane[d * kPanelRows] = r < unit.rows ? row_values[d] : T(0);
  }
}

template <class T>
void run_unit(const Unit<T>& unit) {
  const int64_t panels = panels_of(unit.rows), panel_size = unit.dim * kPanelRows;
  T* const queries = unit.scratch;
  T* const scores = queries + panels * panel_size;
  T* const copy = scores + kTileKeys * kPanelRows;
  pack_queries(unit, queries, copy);
  for (int64_t i = 0; i < panels * kPanelRows; ++i) unit.max[i] = Wide<T>::kLowest, unit.sum[i] = T(0);
  for (int64_t i = 0; unit.mean != nullptr && i < panels * panel_size; ++i) unit.mean[i] = T(0);
  for (int64_t first = unit.first_key; first < unit.last_key; first += kTileKeys) {
    const int64_t count = unit.last_key - first < kTileKeys ? unit.last_key - first : kTileKeys;
    int64_t stride;
    const T* const keys = tile_of(unit.keys, first, count, unit.dim, copy, &stride);
    for (int64_t panel = 0; panel < panels; ++panel) {
      const int64_t rows = unit.rows - panel * kPanelRows;
      for (int64_t row = 0; row < rows && row < kPanelRows; row += 2 * kWidth<T>) {
        const int64_t at = panel * kPanelRows + row, panel_at = panel * panel_size + row;
        T* const mean = unit.mean == nullptr ? nullptr : unit.mean + panel_at;
        const auto run = rows - row > kWidth<T> ? update<T, 2> : update<T, 1>;
        run(keys, stride, count, unit.dim, queries + panel_at, unit.scale + at, unit.max + at, unit.sum + at, mean,
            scores + row);
      }
    }
  }
}

}  // namespace

namespace INFONCE_ISA {
void run(const Unit<float>& unit) { run_unit(unit); }
void run(const Unit<double>& unit) { run_unit(unit); }
}  // namespace INFONCE_ISA

}  // namespace infonce
}  // namespace mixfast
