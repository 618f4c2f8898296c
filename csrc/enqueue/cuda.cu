// SPDX-License-Identifier: MIT
// enqueue_ on CUDA: one launch for up to kMaxRings queues, a warp for a row.
// Pointer   bits kReaders and up count the blocks that have read it: the last one moves it on and clears them. So no
//           block waits for another, and nothing has to be prepared between launches
// Checked   tests/cuda/test_emulated_enqueue.py on the host; tests/ops/test_enqueue.py where there is a GPU
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>

#include "common/on_device.cuh"
#include "enqueue/cuda.h"

namespace mixfast::gpu::enqueue {
namespace {

using mixfast::enqueue::kLeastLength;
using mixfast::enqueue::Ring;
using Pointer = unsigned long long;

constexpr int kWarp = 32;
constexpr int kRows = 8;  // of a block
constexpr int kMaxRings = 32;
constexpr int kReaders = 40;

struct Rings {
  Ring rings[kMaxRings];
  int64_t first_blocks[kMaxRings];
  int count;
  Type queue_type, key_type;
  int64_t dim;
  bool normalize;
};

int64_t blocks_of(const Ring& ring) { return (ring.rows + kRows - 1) / kRows; }

template <class Real>
__device__ Real read(const void* data, Type type, int64_t index) {
  if (type == Type::kFloat) return static_cast<const float*>(data)[index];
  if (type == Type::kDouble) return static_cast<Real>(static_cast<const double*>(data)[index]);
  if (type == Type::kHalf) return __half2float(static_cast<const __half*>(data)[index]);
  return __bfloat162float(static_cast<const __nv_bfloat16*>(data)[index]);
}

template <class Real>
__device__ void write(void* data, Type type, int64_t index, Real value) {
  const float rounded = static_cast<float>(value);
  if (type == Type::kFloat) static_cast<float*>(data)[index] = rounded;
  if (type == Type::kDouble) static_cast<double*>(data)[index] = value;
  if (type == Type::kHalf) static_cast<__half*>(data)[index] = __float2half_rn(rounded);
  if (type == Type::kBFloat16) static_cast<__nv_bfloat16*>(data)[index] = __float2bfloat16_rn(rounded);
}

// The row of the queue that the first of the keys goes to; for one thread of each block.
__device__ int64_t begin(const Ring& ring) {
  Pointer* const pointer = reinterpret_cast<Pointer*>(ring.pointer);
  const Pointer one = Pointer{1} << kReaders, size = static_cast<Pointer>(ring.size);
  const Pointer read = atomicAdd(pointer, one), start = (read & (one - 1)) % size;
  const Pointer blocks = static_cast<Pointer>((ring.rows + kRows - 1) / kRows);
  if ((read >> kReaders) == blocks - 1) atomicExch(pointer, (start + static_cast<Pointer>(ring.rows)) % size);
  return static_cast<int64_t>(start);
}

// Rows are computed in Real: float, or double for double keys.
template <class Real>
__global__ void __launch_bounds__(kRows* kWarp) write_rows(const __grid_constant__ Rings call) {
  int index = 0;
  while (index + 1 < call.count && blockIdx.x >= call.first_blocks[index + 1]) ++index;
  const Ring& ring = call.rings[index];
  int64_t* const start = reinterpret_cast<int64_t*>(shared_memory());
  if (threadIdx.x == 0) *start = begin(ring);
  __syncthreads();
  const int64_t row = (blockIdx.x - call.first_blocks[index]) * kRows + threadIdx.x / kWarp;
  if (row >= ring.rows) return;
  const int64_t from = row * call.dim, to = (*start + row) % ring.size * call.dim;
  const int lane = threadIdx.x % kWarp;
  Real length = 1;
  if (call.normalize) {
    Real square = 0;
    for (int64_t d = lane; d < call.dim; d += kWarp) {
      const Real value = read<Real>(ring.keys, call.key_type, from + d);
      square += value * value;
    }
    for (int step = kWarp / 2; step > 0; step /= 2) square += __shfl_xor_sync(0xffffffffu, square, step);
    length = sqrt(square);
    length = length > static_cast<Real>(kLeastLength) ? length : static_cast<Real>(kLeastLength);
  }
  for (int64_t d = lane; d < call.dim; d += kWarp) {
    const Real value = read<Real>(ring.keys, call.key_type, from + d);
    write(ring.queue, call.queue_type, to + d, call.normalize ? value / length : value);
  }
}

}  // namespace

const char* run(const Place& place, const mixfast::enqueue::Call& call) {
  const OnDevice current(place.device);
  const auto stream = static_cast<cudaStream_t>(place.stream);
  for (size_t first = 0; first < call.rings.size(); first += kMaxRings) {
    const size_t last = std::min(call.rings.size(), first + kMaxRings);
    Rings rings = {{}, {}, static_cast<int>(last - first), call.queue_type, call.key_type, call.dim, call.normalize};
    int64_t blocks = 0;
    for (size_t q = first; q < last; ++q) {
      rings.rings[q - first] = call.rings[q];
      rings.first_blocks[q - first] = blocks;
      blocks += blocks_of(call.rings[q]);
    }
    const auto kernel = call.key_type == Type::kDouble ? write_rows<double> : write_rows<float>;
    const dim3 grid(static_cast<unsigned>(blocks));
    const cudaError_t error = launch(kernel, grid, kRows * kWarp, sizeof(int64_t), stream, rings);
    if (error != cudaSuccess) return description(error);
  }
  return nullptr;
}

}  // namespace mixfast::gpu::enqueue
