// SPDX-License-Identifier: MIT
// The kernels of nt_xent on CPU, for the instruction set of the including file, in namespace NT_XENT_ISA.
//
// All products have one form: vectors of lanes of one panel, times scalars of the other, read where they lie.
//     scores  S[j][i] = sum_d b_j[d] A[d][i]            anchors i in the lanes of panel a, rows j of panel b
//     grads   G[d][i] += sum_j b_j[d] W[j][i]           then with a and b exchanged and W transposed
#pragma once

#include "common/exp2.h"
#include "common/product.h"
#include "ntxent/tile.h"

namespace mixfast {
namespace ntxent {
namespace {

// Four numbers side by side.
template <class T>
struct Four;
template <>
struct Four<float> {
  typedef float Vector __attribute__((vector_size(16)));
  typedef float Stored __attribute__((vector_size(16), aligned(4), may_alias));
  typedef int32_t Index __attribute__((vector_size(16)));
};
template <>
struct Four<double> {
  typedef double Vector __attribute__((vector_size(32)));
  typedef double Stored __attribute__((vector_size(32), aligned(8), may_alias));
  typedef int64_t Index __attribute__((vector_size(32)));
};

// to[i][j] = from[j][i], both [kPanelRows][kPanelRows], in blocks of 4 x 4.
template <class T>
void transpose(const T* from, T* to) {
  using Vector = typename Four<T>::Vector;
  using Stored = typename Four<T>::Stored;
  using Index = typename Four<T>::Index;
  for (int64_t i = 0; i < kPanelRows; i += 4) {
    for (int64_t j = 0; j < kPanelRows; j += 4) {
      Vector rows[4];
      for (int r = 0; r < 4; ++r) rows[r] = *reinterpret_cast<const Stored*>(from + (j + r) * kPanelRows + i);
      const Vector low01 = MIXFAST_SHUFFLE(rows[0], rows[1], Index, 0, 4, 1, 5);
      const Vector low23 = MIXFAST_SHUFFLE(rows[2], rows[3], Index, 0, 4, 1, 5);
      const Vector high01 = MIXFAST_SHUFFLE(rows[0], rows[1], Index, 2, 6, 3, 7);
      const Vector high23 = MIXFAST_SHUFFLE(rows[2], rows[3], Index, 2, 6, 3, 7);
      const Vector turned[4] = {
          MIXFAST_SHUFFLE(low01, low23, Index, 0, 1, 4, 5), MIXFAST_SHUFFLE(low01, low23, Index, 2, 3, 6, 7),
          MIXFAST_SHUFFLE(high01, high23, Index, 0, 1, 4, 5), MIXFAST_SHUFFLE(high01, high23, Index, 2, 3, 6, 7)};
      for (int r = 0; r < 4; ++r) *reinterpret_cast<Stored*>(to + (i + r) * kPanelRows + j) = turned[r];
    }
  }
}

template <class T, int BLOCK, int VECTORS>
__attribute__((noinline)) void score(const T* keys, const T* anchors, int64_t dim, T* scores) {
  WideVector<T> sums[BLOCK][VECTORS];
  multiply<T, BLOCK, VECTORS, true>(keys, kPanelRows, anchors, kPanelRows, dim, sums);
#pragma GCC unroll 16
  for (int i = 0; i < BLOCK; ++i)
#pragma GCC unroll 2
    for (int v = 0; v < VECTORS; ++v) put(scores + i * kPanelRows + v * kWidth<T>, sums[i][v]);
}

template <class T, int BLOCK, int VECTORS>
__attribute__((noinline)) void add_gradients(const T* keys, const T* weights, int64_t count, T* grads) {
  WideVector<T> sums[BLOCK][VECTORS];
  multiply<T, BLOCK, VECTORS, false>(keys, kPanelRows, weights, kPanelRows, count, sums);
#pragma GCC unroll 16
  for (int i = 0; i < BLOCK; ++i)
#pragma GCC unroll 2
    for (int v = 0; v < VECTORS; ++v) {
      T* const to = grads + i * kPanelRows + v * kWidth<T>;
      put(to, get(to) + sums[i][v]);
    }
}

// S[j][i] of the rows in use.
template <class T>
void multiply_panels(const Problem<T>& problem, int64_t a, int64_t b, T* scores) {
  const T* const anchors = problem.panels + a * problem.dim * kPanelRows;
  const T* const keys = problem.panels + b * problem.dim * kPanelRows;
  for (int64_t lane = 0; lane < rows_in(problem, a); lane += 2 * kWidth<T>) {
    const bool both = rows_in(problem, a) - lane > kWidth<T>;
    in_blocks(rows_in(problem, b), [&](auto block, int64_t key) {
      const auto run = both ? score<T, decltype(block)::value, 2> : score<T, decltype(block)::value, 1>;
      run(keys + key, anchors + lane, problem.dim, scores + key * kPanelRows + lane);
    });
  }
}

// The gradients of panel a from the weights [b][a] of panel b's rows.
template <class T>
void add_panel(const Problem<T>& problem, int64_t a, int64_t b, const T* weights) {
  const T* const keys = problem.panels + b * problem.dim * kPanelRows;
  T* const grads = problem.grads + a * problem.dim * kPanelRows;
  for (int64_t lane = 0; lane < rows_in(problem, a); lane += 2 * kWidth<T>) {
    const bool both = rows_in(problem, a) - lane > kWidth<T>;
    in_blocks(problem.dim, [&](auto block, int64_t d) {
      const auto run = both ? add_gradients<T, decltype(block)::value, 2> : add_gradients<T, decltype(block)::value, 1>;
      run(keys + d * kPanelRows, weights + lane, rows_in(problem, b), grads + d * kPanelRows + lane);
    });
  }
}

// Scores [b][a] of what is hidden from the anchors of panel a become -inf.
template <class T>
void hide(const Problem<T>& problem, int64_t a, int64_t b, T* scores) {
  const int64_t first_a = a * kPanelRows, first_b = b * kPanelRows;
  for (int64_t i = first_a; i < first_a + rows_in(problem, a); ++i) {
    const int64_t hidden[] = {i, positive_of(problem, i), left_out_of(problem, i)};
    for (const int64_t j : hidden) {
      if (j < first_b || j >= first_b + rows_in(problem, b)) continue;
      scores[(j - first_b) * kPanelRows + i - first_a] = -static_cast<T>(__builtin_inf());
    }
  }
}

// Adds scores [keys][kPanelRows] to the maxima and sums of the lanes. A maximum stays finite: all scores may be -inf.
template <class T>
void add_statistics(const T* scores, int64_t keys, T scale, int64_t lanes, T* max, T* sum) {
  for (int64_t lane = 0; lane < lanes; lane += kWidth<T>) {
    const T* const column = scores + lane;
    WideVector<T> largest = WideVector<T>{} + Wide<T>::kLowest;
    for (int64_t key = 0; key < keys; ++key) {
      const WideVector<T> value = get(column + key * kPanelRows);
      largest = largest > value ? largest : value;
    }
    const WideVector<T> scales = WideVector<T>{} + scale;
    const WideVector<T> old = get(max + lane), tile = shift_of<T>(largest, scales);
    const WideVector<T> shift = old > tile ? old : tile;
    WideVector<T> even = {}, odd = {};
    const auto weight = [&](int64_t key) {
      return exp2_of<T>(exponent_of<T>(get(column + key * kPanelRows), scales, shift));
    };
    int64_t key = 0;
    for (; key + 2 <= keys; key += 2) {
      even += weight(key);
      odd += weight(key + 1);
    }
    if (key < keys) even += weight(key);
    put(max + lane, shift);
    put(sum + lane, get(sum + lane) * exp2_of<T>(old - shift) + (even + odd));
  }
}

// W[j][i] = (g_i p_ij + g_j p_ji) / tau from scores [b][a], as if nothing were hidden.
template <class T>
void weigh(const Problem<T>& problem, int64_t a, int64_t b, const T* scores, T* weights) {
  const int64_t first_a = a * kPanelRows, first_b = b * kPanelRows;
  for (int64_t lane = 0; lane < rows_in(problem, a); lane += kWidth<T>) {
    const WideVector<T> g = get(problem.scaled + first_a + lane), scales = WideVector<T>{} + problem.scale;
    const WideVector<T> shift = get(problem.shifts + first_a + lane), log = get(problem.logs + first_a + lane);
    for (int64_t key = 0; key < rows_in(problem, b); ++key) {
      const WideVector<T> score = get(scores + key * kPanelRows + lane);
      const WideVector<T> key_shift = WideVector<T>{} + problem.shifts[first_b + key];
      const WideVector<T> forth = exp2_of<T>(exponent_of<T>(score, scales, shift) - log);
      const WideVector<T> back = exp2_of<T>(exponent_of<T>(score, scales, key_shift) - problem.logs[first_b + key]);
      put(weights + key * kPanelRows + lane, g * forth + back * problem.scaled[first_b + key]);
    }
  }
}

// Corrects the weights where something is hidden. A positive's own p is not needed, nor its difference from one:
// its anchor's negatives have the share that it lacks.
template <class T>
void correct(const Problem<T>& problem, int64_t a, int64_t b, const T* scores, T* weights) {
  const int64_t first_a = a * kPanelRows, first_b = b * kPanelRows;
  const auto inside = [&](int64_t row, int64_t panel) {
    return row >= panel * kPanelRows && row < panel * kPanelRows + rows_in(problem, panel);
  };
  const auto cell = [&](int64_t i, int64_t j) { return (j - first_b) * kPanelRows + i - first_a; };
  const auto part = [&](int64_t i, int64_t j, T score) {  // g_i p_ij / tau
    if (left_out_of(problem, i) == j) return T(0);
    const WideVector<T> all = {};
    const WideVector<T> exponent = exponent_of<T>(all + score, all + problem.scale, all + problem.shifts[i]);
    return problem.scaled[i] * exp2_of<T>(exponent - problem.logs[i])[0];
  };
  const auto leave_out = [&](int64_t i, int64_t j) {
    const T score = scores[cell(i, j)];
    weights[cell(i, j)] = part(i, j, score) + part(j, i, score);
  };
  for (int64_t i = first_a; i < first_a + rows_in(problem, a); ++i) {
    const int64_t positive = positive_of(problem, i), left_out = left_out_of(problem, i);
    if (a == b) weights[cell(i, i)] = T(0);
    if (inside(left_out, b)) leave_out(i, left_out);
    if (!inside(positive, b)) continue;
    weights[cell(i, positive)] =
        -(problem.scaled[i] * problem.shares[i] + problem.scaled[positive] * problem.shares[positive]);
  }
  for (int64_t j = first_b; j < first_b + rows_in(problem, b); ++j) {
    if (inside(left_out_of(problem, j), a)) leave_out(left_out_of(problem, j), j);
  }
}

template <class T>
void forward_pair(const Problem<T>& problem, int64_t a, int64_t b, T* scratch) {
  T* const scores = scratch;
  T* const turned = scratch + kPanelRows * kPanelRows;
  const auto add = [&](int64_t anchors, int64_t keys, T* these) {
    const int64_t first = anchors * kPanelRows;
    hide(problem, anchors, keys, these);
    add_statistics(these, rows_in(problem, keys), problem.scale, rows_in(problem, anchors), problem.max + first,
                   problem.sum + first);
  };
  multiply_panels(problem, a, b, scores);
  if (a != b) {
    transpose(scores, turned);
    add(b, a, turned);
  }
  add(a, b, scores);
}

template <class T>
void backward_pair(const Problem<T>& problem, int64_t a, int64_t b, T* scratch) {
  T* const scores = scratch;
  T* const weights = scratch + kPanelRows * kPanelRows;
  multiply_panels(problem, a, b, scores);
  weigh(problem, a, b, scores, weights);
  correct(problem, a, b, scores, weights);
  add_panel(problem, a, b, weights);
  if (a == b) return;
  transpose(weights, scores);
  add_panel(problem, b, a, scores);
}

}  // namespace

namespace NT_XENT_ISA {
void forward_tile(const Problem<float>& problem, int64_t a, int64_t b, float* scratch) {
  forward_pair(problem, a, b, scratch);
}
void forward_tile(const Problem<double>& problem, int64_t a, int64_t b, double* scratch) {
  forward_pair(problem, a, b, scratch);
}
void backward_tile(const Problem<float>& problem, int64_t a, int64_t b, float* scratch) {
  backward_pair(problem, a, b, scratch);
}
void backward_tile(const Problem<double>& problem, int64_t a, int64_t b, double* scratch) {
  backward_pair(problem, a, b, scratch);
}
}  // namespace NT_XENT_ISA

}  // namespace ntxent
}  // namespace mixfast
