// SPDX-License-Identifier: MIT
// The unit of work of nt_xent on CPU: two panels of rows, each row an anchor of the other panel's rows.
//
// Rows live in panels of kPanelRows: [dim][kPanelRows], one lane per row, so that what is summed for an anchor is a
// lane too. s_ij = z_i.z_j / tau is the same both ways: a pair of panels is multiplied once and read in both
// directions. Hidden from anchor i: itself, its positive (the same row of the other view), and the row that it
// excludes.
#pragma once

#include <cstdint>

namespace mixfast {
namespace ntxent {

constexpr int64_t kPanelRows = 64;

// Arrays over rows go on to the end of the last panel.
template <class T>
struct Problem {
  const T* panels;           // [panels][dim][kPanelRows], zeros beyond the last row
  int64_t rows, dim;         // 2N: first's rows, then second's
  const int64_t* excluded;   // [rows], or null; an entry that is no row, or the positive, hides nothing
  T scale;                   // log2(e) / tau
  T *max, *sum;              // forward: m = max_j s_ij log2(e), and sum_j 2^(s_ij log2(e) - m), over j not hidden
  const T *shifts, *logs;    // backward: their sum is log2 of what e^s_ij is divided by
  const T *shares, *scaled;  // backward: part of the denominator that is not the positive's; g_i / tau
  T* grads;                  // [panels][dim][kPanelRows], backward: sum_j (g_i p_ij + g_j p_ji) z_j / tau so far
};

// Internal linkage: files compiled for different instruction sets must not share a copy.
namespace {

template <class T>
int64_t rows_in(const Problem<T>& problem, int64_t panel) {
  const int64_t left = problem.rows - panel * kPanelRows;
  return left < kPanelRows ? left : kPanelRows;
}

// The same row of the other view.
template <class T>
int64_t positive_of(const Problem<T>& problem, int64_t row) {
  return row < problem.rows / 2 ? row + problem.rows / 2 : row - problem.rows / 2;
}

// The row that an anchor excludes, or a negative number.
template <class T>
int64_t left_out_of(const Problem<T>& problem, int64_t row) {
  const int64_t other = problem.excluded == nullptr ? -1 : problem.excluded[row];
  return other < problem.rows && other != row && other != positive_of(problem, row) ? other : -1;
}

}  // namespace

constexpr int64_t kScratch = 2 * kPanelRows * kPanelRows;

// Both update the arrays for the rows of panels `a` and `b`, which may be the same panel. There is one version per
// instruction set, each compiled with its own flags.
#define MIXFAST_TILES(T)                                                                       \
  void forward_tile(const Problem<T>& problem, int64_t a, int64_t b, T* scratch /*kScratch*/); \
  void backward_tile(const Problem<T>& problem, int64_t a, int64_t b, T* scratch /*kScratch*/)
namespace baseline {
MIXFAST_TILES(float);
MIXFAST_TILES(double);
}  // namespace baseline
namespace avx2 {
MIXFAST_TILES(float);
MIXFAST_TILES(double);
}  // namespace avx2
namespace avx512 {
MIXFAST_TILES(float);
MIXFAST_TILES(double);
}  // namespace avx512
#undef MIXFAST_TILES

}  // namespace ntxent
}  // namespace mixfast
