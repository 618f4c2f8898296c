// SPDX-License-Identifier: MIT
// The kernels of multi_queue_infonce on CUDA that go over rows: a warp for a row, every sum in an order fixed by the
// shapes. Formulas in merge.h and backward.cpp, where the CPU does the same.
#pragma once

#include "infonce/cuda_unit.cuh"

namespace mixfast::gpu::infonce {

constexpr int kRowWarps = 8;         // of merge
constexpr int kScaleWarps = 16;      // of scale_rows
constexpr int kReduceThreads = 256;  // of reduce_terms
constexpr int kLaneDims = static_cast<int>(kLargestDim) / kWarp;

__device__ inline float read(const void* data, Type type, int64_t index) {
  if (type == Type::kFloat) return static_cast<const float*>(data)[index];
  if (type == Type::kHalf) return as_float(static_cast<const __half*>(data)[index]);
  return as_float(static_cast<const __nv_bfloat16*>(data)[index]);
}

__device__ inline void write(void* data, Type type, int64_t index, float value) {
  if (type == Type::kFloat) {
    static_cast<float*>(data)[index] = value;
  } else if (type == Type::kHalf) {
    static_cast<__half*>(data)[index] = __float2half_rn(value);
  } else {
    static_cast<__nv_bfloat16*>(data)[index] = __float2bfloat16_rn(value);
  }
}

__device__ inline float warp_sum(float value) {
  for (int step = kWarp / 2; step > 0; step /= 2) value += __shfl_xor_sync(kAllLanes, value, step);
  return value;
}

// The sum over a block of at most 32 warps, in all threads.
__device__ inline double block_sum(double value) {
  double* const sums = reinterpret_cast<double*>(shared_memory());
  for (int step = kWarp / 2; step > 0; step /= 2) value += __shfl_xor_sync(kAllLanes, value, step);
  if (threadIdx.x % kWarp == 0) sums[threadIdx.x / kWarp] = value;
  __syncthreads();
  double total = 0;
  for (int warp = 0; warp < static_cast<int>(blockDim.x) / kWarp; ++warp) total += sums[warp];
  return total;
}

__device__ inline int term_of(const Call& call, int row) {
  int term = 0;
  while (term + 1 < call.term_count && row >= call.terms[term + 1].first_row) ++term;
  return term;
}

// Chunks of a row in order, then its positive: loss = softplus(l - s) and the negatives' share sigmoid(l - s).
__global__ void __launch_bounds__(kRowWarps* kWarp) merge(const __grid_constant__ Call call) {
  const int row = blockIdx.x * kRowWarps + threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  if (row >= call.rows) return;
  const int index = term_of(call, row);
  const TermOf& term = call.terms[index];
  const QueueOf& queue = call.queues[term.queue];
  const int64_t slot = term.first_slot + row - term.first_row, rows = call.rows;
  const int chunks = (keys_of(call, queue) + call.chunk - 1) / call.chunk;
  const float inverse = inverse_temperature(call, index);

  float reference = -INFINITY;
  for (int c = lane; c < chunks; c += kWarp) reference = fmaxf(reference, call.maxima[c * rows + slot]);
  for (int step = kWarp / 2; step > 0; step /= 2)
    reference = fmaxf(reference, __shfl_xor_sync(kAllLanes, reference, step));
  float sum = 0, mean[kLaneDims] = {};
#pragma unroll 4
  for (int c = 0; c < chunks; ++c) {
    const int64_t cell = c * rows + slot;
    const float weight = exp2_approx(call.maxima[cell] - reference);
    sum += weight * call.sums[cell];
    if (call.grads == nullptr) continue;
    const float* const products = call.products + cell * call.padded_dim + lane;
#pragma unroll
    for (int i = 0; i < kLaneDims; ++i) {
      if (i * kWarp < call.padded_dim) mean[i] += weight * products[i * kWarp];
    }
  }

  float match = 0, positive[kLaneDims];
#pragma unroll
  for (int i = 0; i < kLaneDims; ++i) {
    const int d = lane + i * kWarp;
    const int64_t n = row - term.first_row;
    positive[i] = d < call.dim ? read(term.positives, call.query_type, n * term.positive_stride + d) : 0;
    if (d < call.dim) match += read(term.queries, call.query_type, n * term.query_stride + d) * positive[i];
  }
  match = warp_sum(match);
  if (!(fabsf(match) < INFINITY)) match = NAN;  // else a loss of 0
  if (sum == INFINITY) sum = NAN;               // else gradients of a loss of inf
  const float margin = kLn2 * (fmaf(-match, kLog2E * inverse, reference) + log2f(sum));
  const float small = expf(-fabsf(margin)), share = (margin < 0 ? small : 1) / (1 + small);
  if (lane == 0) {
    call.losses[row] = chunks == 0 ? 0 : (margin < 0 ? 0 : margin) + log1pf(small);
    call.shares[row] = chunks == 0 ? 0 : share;
  }
  if (call.grads == nullptr) return;
#pragma unroll
  for (int i = 0; i < kLaneDims; ++i) {
    const int d = lane + i * kWarp;
    if (d < call.dim)
      call.grads[static_cast<int64_t>(row) * call.dim + d] =
          chunks == 0 ? 0 : share * inverse * (mean[i] / sum - positive[i]);
  }
}

// A block for a term: the sum or mean of its rows' losses.
__global__ void __launch_bounds__(kReduceThreads)
    reduce_terms(const __grid_constant__ Call call, bool mean, float* results) {
  const TermOf& term = call.terms[blockIdx.x];
  double sum = 0;
  for (int n = threadIdx.x; n < term.rows; n += kReduceThreads)
    sum += static_cast<double>(call.losses[term.first_row + n]);
  sum = block_sum(sum);
  if (threadIdx.x == 0) results[blockIdx.x] = static_cast<float>(mean ? sum / term.rows : sum);
}

struct Scaling {
  Reduction reduction;
  const float *grad_losses, *grads, *shares;
  int64_t grad_stride;
  void *d_queries, *d_positives;  // null: not wanted
  float* d_temperature;           // null: not wanted; else the first blocks are for the terms, and the others for rows
};

// The upstream gradient of a row's loss.
__device__ inline float upstream(const Call& call, const Scaling& scaling, int term, int row) {
  if (scaling.reduction == Reduction::kNone) return scaling.grad_losses[row * scaling.grad_stride];
  const float g = scaling.grad_losses[term * scaling.grad_stride];
  return scaling.reduction == Reduction::kMean ? g / call.terms[term].rows : g;
}

// -1/tau times the sum over a term's rows of g (q . grad): all threads of a block.
__device__ inline void sum_temperature(const Call& call, const Scaling& scaling, int index) {
  constexpr int kUnrolled = 4;  // rows whose memory a warp awaits together
  const TermOf& term = call.terms[index];
  const int lane = threadIdx.x % kWarp;
  double sum = 0;
  for (int first = threadIdx.x / kWarp; first < term.rows; first += kUnrolled * kScaleWarps) {
    float dots[kUnrolled] = {};
#pragma unroll
    for (int u = 0; u < kUnrolled; ++u) {
      const int n = first + u * kScaleWarps, row = term.first_row + n;
      if (n >= term.rows) continue;
      for (int d = lane; d < call.dim; d += kWarp)
        dots[u] += read(term.queries, call.query_type, n * term.query_stride + d) *
                   scaling.grads[static_cast<int64_t>(row) * call.dim + d];
    }
#pragma unroll
    for (int u = 0; u < kUnrolled; ++u) {
      const int n = first + u * kScaleWarps;
      if (n < term.rows)
        sum += static_cast<double>(upstream(call, scaling, index, term.first_row + n)) * static_cast<double>(dots[u]);
    }
  }
  sum = block_sum(sum);
  if (threadIdx.x == 0)
    scaling.d_temperature[index] = static_cast<float>(-sum * static_cast<double>(inverse_temperature(call, index)));
}

// The backward pass: d query = g grad, d positive = -g (share / tau) query.
__global__ void __launch_bounds__(kScaleWarps* kWarp, 2)
    scale_rows(const __grid_constant__ Call call, const __grid_constant__ Scaling scaling) {
  int block = blockIdx.x;
  if (scaling.d_temperature != nullptr) {
    if (block < call.term_count) return sum_temperature(call, scaling, block);
    block -= call.term_count;
  }
  const int row = block * kScaleWarps + threadIdx.x / kWarp;
  if (row >= call.rows) return;
  const int index = term_of(call, row);
  const TermOf& term = call.terms[index];
  const float g = upstream(call, scaling, index, row);
  const float factor = -g * scaling.shares[row] * inverse_temperature(call, index);
  for (int d = threadIdx.x % kWarp; d < call.dim; d += kWarp) {
    const int64_t at = static_cast<int64_t>(row) * call.dim + d;
    if (scaling.d_queries != nullptr) write(scaling.d_queries, call.query_type, at, g * scaling.grads[at]);
    if (scaling.d_positives == nullptr) continue;
    const int64_t from = (row - term.first_row) * term.query_stride + d;
    write(scaling.d_positives, call.query_type, at, factor * read(term.queries, call.query_type, from));
  }
}

}  // namespace mixfast::gpu::infonce
