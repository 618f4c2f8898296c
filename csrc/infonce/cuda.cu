// SPDX-License-Identifier: MIT
// multi_queue_infonce on CUDA: three launches forward (two for reduction "none"), one backward, for up to kMaxTerms
// terms; a call of more terms makes its launches for every kMaxTerms of them.
// Order     partials of chunks, their merger in chunk order, sums over terms; every cell has one writer, no atomics:
//           the same bits on every run
// Checked   tests/cuda/test_emulated_infonce.py on the host; tests/ops/test_multi_queue_infonce.py where there is a GPU
#include <algorithm>
#include <array>
#include <atomic>
#include <iterator>

#include "common/on_device.cuh"
#include "infonce/cuda.h"
#include "infonce/cuda_partials.cuh"
#include "infonce/cuda_rows.cuh"
#include "infonce/hopper.h"

namespace mixfast::gpu::infonce {
namespace {

// The faster kernel of an architecture that can run both. Not measured yet: tests/gpu and benchmarks/gpu run both.
struct Faster {
  int capability;
  Kernel kernel;
};
constexpr Faster kFaster[] = {{90, Kernel::kAmpere}};

std::atomic<int> used_kernel = -1;  // see use_kernel()

// Terms [first, last) of a call, and the rows before them.
struct Batch {
  size_t first, last;
  int64_t rows_before;
};

template <class Terms>
std::vector<Batch> batches(const Terms& terms) {
  std::vector<Batch> cut;
  int64_t rows = 0;
  for (size_t first = 0; first < terms.size(); first += kMaxTerms) {
    const size_t last = std::min(terms.size(), first + kMaxTerms);
    cut.push_back({first, last, rows});
    for (size_t t = first; t < last; ++t) rows += terms[t].queries.rows;
  }
  return cut;
}

bool aligned(const Matrix& matrix, int64_t dim) {
  const int64_t bytes = matrix.type == Type::kFloat ? 4 : 2;
  return matrix.column_stride == 1 && dim % kChunk == 0 && reinterpret_cast<uintptr_t>(matrix.data) % 16 == 0 &&
         matrix.row_stride * bytes % 16 == 0;
}

Access access_of(bool aligned, Type type, Factors factors) {
  if (!aligned) return Access::kScattered;
  const bool same =
      (type == Type::kHalf && factors == Factors::kHalf) || (type == Type::kBFloat16 && factors == Factors::kBFloat16);
  return same ? Access::kCopied : Access::kConverted;
}

// The terms of a batch, as every kernel needs them.
void add_terms(const std::vector<Term>& terms, const Batch& batch, const Temperatures& temperatures, int64_t dim,
               Call* call) {
  call->dim = static_cast<int>(dim);
  call->padded_dim = padded(dim);
  call->query_type = terms[0].queries.type;
  call->temperature_type = temperatures.type;
  call->temperature_stride = temperatures.stride;
  if (temperatures.tensor != nullptr) {
    const int64_t bytes = temperatures.type == Type::kDouble ? 8 : temperatures.type == Type::kFloat ? 4 : 2;
    const int64_t first = static_cast<int64_t>(batch.first) * temperatures.stride;
    call->temperatures = static_cast<const char*>(temperatures.tensor) + first * bytes;
  }
  for (size_t t = batch.first; t < batch.last; ++t) {
    const Term& term = terms[t];
    TermOf& to = call->terms[call->term_count++];
    to.queries = term.queries.data;
    to.positives = term.positives.data;
    to.query_stride = term.queries.row_stride;
    to.positive_stride = term.positives.row_stride;
    to.temperature = static_cast<float>(term.temperature);
    to.rows = static_cast<int>(term.queries.rows);
    to.first_row = call->rows;
    call->rows += to.rows;
  }
}

// Whether the kernel for sm_90 can run a call: 16-bit products, and keys that the copy engine reads as they lie.
bool hopper_takes(const Forward& all) {
  if (hopper_launch == nullptr || all.factors == Factors::kSplit) return false;
  const auto fits = [&](const Matrix& queue) {
    return access_of(aligned(queue, all.dim), queue.type, all.factors) == Access::kCopied &&
           queue.row_stride >= all.dim && queue.rows > 0;
  };
  return std::all_of(all.queues.begin(), all.queues.end(), fits);
}

// The queues that a batch reads, and how their work is cut. Returns the number of units.
int add_queues(const std::vector<int64_t>& queue_index, const std::vector<int64_t>& keys, const Batch& batch,
               const Tiling& tiling, Call* call) {
  std::vector<int64_t> counts, tiles;
  int slots = 0;
  for (int index = 0; index < static_cast<int>(keys.size()); ++index) {
    QueueOf& queue = call->queues[call->queue_count];
    queue = {};
    queue.index = index;
    queue.count = static_cast<int>(keys[index]);
    queue.first_slot = slots;
    for (int t = 0; t < call->term_count; ++t) {
      if (queue_index[batch.first + t] != index) continue;
      call->terms[t].queue = call->queue_count;
      call->terms[t].first_slot = slots;
      slots += call->terms[t].rows;
    }
    queue.rows = slots - queue.first_slot;
    if (queue.rows == 0) continue;
    queue.tiles = static_cast<int>(ceil_div(queue.rows, tiling.rows));
    counts.push_back(queue.count);
    tiles.push_back(queue.tiles);
    if (++call->queue_count == kMaxTerms) break;
  }
  const Division division = divide(counts, tiles, tiling, call->padded_dim + 2);
  call->chunk = static_cast<int>(division.chunk);
  call->chunks = static_cast<int>(division.chunks);
  int units = 0;
  for (int q = 0; q < call->queue_count; ++q) {
    call->queues[q].first_unit = units;
    units += call->queues[q].tiles * static_cast<int>(ceil_div(call->queues[q].count, division.chunk));
  }
  return units;
}

// Where a batch works: products first, for they are read and written 8 bytes at a time.
int64_t add_workspace(bool need_grad, Reduction reduction, float* workspace, Call* call) {
  const int64_t cells = static_cast<int64_t>(call->chunks) * call->rows;
  call->products = workspace;
  call->maxima = call->products + (need_grad ? cells * call->padded_dim : 0);
  call->sums = call->maxima + cells;
  call->losses = call->sums + cells;
  return call->losses - workspace + (reduction == Reduction::kNone ? 0 : call->rows);
}

template <Factors kFactors, int kDim>
cudaError_t launch_partials(const Call& call, int units, cudaStream_t stream) {
  constexpr Tiling kTiling = kTilingOf<kFactors, kDim>;
  const auto kernel = call.grads == nullptr ? partials<kFactors, kDim, false> : partials<kFactors, kDim, true>;
  return launch(kernel, units, kTiling.threads, kTiling.shared_bytes, stream, call);
}

template <Factors kFactors>
cudaError_t launch_partials(const Call& call, int units, cudaStream_t stream) {
  if (call.padded_dim == 64) return launch_partials<kFactors, 64>(call, units, stream);
  if (call.padded_dim == 128) return launch_partials<kFactors, 128>(call, units, stream);
  return launch_partials<kFactors, 256>(call, units, stream);
}

cudaError_t launch_ampere(Factors factors, const Call& call, int units, cudaStream_t stream) {
  if (factors == Factors::kHalf) return launch_partials<Factors::kHalf>(call, units, stream);
  if (factors == Factors::kBFloat16) return launch_partials<Factors::kBFloat16>(call, units, stream);
  return launch_partials<Factors::kSplit>(call, units, stream);
}

cudaError_t forward_batch(const Forward& all, const Batch& batch, cudaStream_t stream) {
  const bool hopper = all.kernel == Kernel::kHopper && hopper_takes(all);
  Call call = {};
  add_terms(all.terms, batch, all.temperatures, all.dim, &call);
  std::vector<int64_t> queue_index, keys;
  for (const Term& term : all.terms) queue_index.push_back(term.queue);
  for (const Matrix& queue : all.queues) keys.push_back(queue.rows);
  const Tiling tiles = hopper ? hopper_tiling(call.padded_dim) : tiling(all.factors, call.padded_dim);
  const int units = add_queues(queue_index, keys, batch, tiles, &call);

  bool queries_aligned = true, keys_aligned = true;
  for (size_t t = batch.first; t < batch.last; ++t)
    queries_aligned = queries_aligned && aligned(all.terms[t].queries, all.dim);
  for (int q = 0; q < call.queue_count; ++q) {
    const Matrix& queue = all.queues[call.queues[q].index];
    call.queues[q].keys = queue.data;
    call.queues[q].row_stride = queue.row_stride;
    call.queues[q].column_stride = queue.column_stride;
    keys_aligned = keys_aligned && aligned(queue, all.dim);
  }
  call.key_type = all.queues[0].type;
  call.query_access = access_of(queries_aligned, call.query_type, all.factors);
  call.key_access = access_of(keys_aligned, call.key_type, all.factors);
  call.valid_len = all.valid_len;
  if (all.grad_queries != nullptr) call.grads = all.grad_queries + batch.rows_before * all.dim;
  call.shares = all.negative_share + batch.rows_before;
  add_workspace(call.grads != nullptr, all.reduction, all.workspace, &call);
  if (all.reduction == Reduction::kNone) call.losses = all.losses + batch.rows_before;

  cudaError_t error = (hopper ? hopper_launch : launch_ampere)(all.factors, call, units, stream);
  if (error == cudaSuccess)
    error = launch(merge, static_cast<unsigned>(ceil_div(call.rows, kRowWarps)), kRowWarps * kWarp, 0, stream, call);
  if (error == cudaSuccess && all.reduction != Reduction::kNone)
    error = launch(reduce_terms, call.term_count, kReduceThreads, sizeof(double) * kReduceThreads / kWarp, stream, call,
                   all.reduction == Reduction::kMean, all.losses + batch.first);
  return error;
}

cudaError_t backward_batch(const Backward& all, const Batch& batch, cudaStream_t stream) {
  Call call = {};
  add_terms(all.terms, batch, all.temperatures, all.dim, &call);
  const int64_t before = batch.rows_before, bytes = call.query_type == Type::kFloat ? 4 : 2;
  const auto after = [&](void* rows) {
    return rows == nullptr ? nullptr : static_cast<char*>(rows) + before * all.dim * bytes;
  };
  const int64_t first_grad = all.reduction == Reduction::kNone ? before : static_cast<int64_t>(batch.first);
  Scaling scaling = {all.reduction,
                     all.grad_losses + first_grad * all.grad_stride,
                     all.grad_queries + before * all.dim,
                     all.negative_share + before,
                     all.grad_stride,
                     after(all.d_queries),
                     after(all.d_positives),
                     all.d_temperature == nullptr ? nullptr : all.d_temperature + batch.first};
  int64_t blocks = scaling.d_temperature == nullptr ? 0 : call.term_count;
  if (scaling.d_queries != nullptr || scaling.d_positives != nullptr) blocks += ceil_div(call.rows, kScaleWarps);
  return launch(scale_rows, static_cast<unsigned>(blocks), kScaleWarps * kWarp, sizeof(double) * kScaleWarps, stream,
                call, scaling);
}

}  // namespace

int64_t workspace_floats(const std::vector<int64_t>& rows, const std::vector<int64_t>& queue_index,
                         const std::vector<int64_t>& keys, int64_t dim, Factors factors, bool need_grad,
                         Reduction reduction, Kernel kernel) {
  std::vector<Term> terms;
  for (const int64_t each : rows) terms.push_back({{nullptr, each, 0, 0, Type::kFloat}, {}, 0, 0});
  int64_t most = 0;
  const auto needed = [&](const Batch& batch, const Tiling& tiles) {
    Call call = {};
    add_terms(terms, batch, {}, dim, &call);
    add_queues(queue_index, keys, batch, tiles, &call);
    most = std::max(most, add_workspace(need_grad, reduction, nullptr, &call));
  };
  for (const Batch& batch : batches(terms)) {
    needed(batch, tiling(factors, padded(dim)));
    if (kernel == Kernel::kHopper) needed(batch, hopper_tiling(padded(dim)));
  }
  return most;
}

Kernel kernel_on(int device) {
  static std::array<std::atomic<int>, 64> capabilities;
  if (const int used = used_kernel; used >= 0) return static_cast<Kernel>(used);
  std::atomic<int>& capability = capabilities[device % capabilities.size()];
  if (capability == 0) {
    int major = 0, minor = 0;
    cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
    cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
    capability = 10 * major + minor;
  }
  const auto measured =
      std::find_if(std::begin(kFaster), std::end(kFaster), [&](const Faster& f) { return f.capability == capability; });
  return measured == std::end(kFaster) ? Kernel::kAmpere : measured->kernel;
}

void use_kernel(int kernel) { used_kernel = kernel; }

bool has_hopper() { return hopper_launch != nullptr; }

const char* forward(const Place& place, const Forward& call) {
  int64_t largest = 0;
  for (const Matrix& queue : call.queues) largest = std::max(largest, queue.rows);
  for (const Term& term : call.terms) largest = std::max(largest, term.queries.rows);
  if (call.dim > kLargestDim) return "it takes D up to 256";
  if (largest * kMaxTerms > INT32_MAX) return "it takes up to 2^26 - 1 rows of a term, and keys of a queue";
  const OnDevice on(place.device);
  cudaError_t error = cudaSuccess;
  for (const Batch& batch : batches(call.terms)) {
    if (error == cudaSuccess) error = forward_batch(call, batch, static_cast<cudaStream_t>(place.stream));
  }
  return description(error);
}

const char* backward(const Place& place, const Backward& call) {
  const OnDevice on(place.device);
  cudaError_t error = cudaSuccess;
  for (const Batch& batch : batches(call.terms)) {
    if (error == cudaSuccess) error = backward_batch(call, batch, static_cast<cudaStream_t>(place.stream));
  }
  return description(error);
}

}  // namespace mixfast::gpu::infonce
