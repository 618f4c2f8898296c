// SPDX-License-Identifier: MIT
// Small kernels for tests/cuda/test_emulator_hopper.py: right ones, and one for each fault that the emulator must find.
#include "common/hopper.cuh"
#include "driver.h"

namespace {

using mixfast::emulator::Call;
using namespace mixfast::gpu;

constexpr int kRows = 64, kPanelBytes = kRows * 128, kThreads = kWarpgroup;
constexpr int kBytes = 1024 + 4 * kPanelBytes;

unsigned char* aligned_memory() {
  unsigned char* const start = shared_memory();
  return start + (1024 - shared_address(start) % 1024) % 1024;
}

uint64_t* barrier_of(unsigned char* memory) { return reinterpret_cast<uint64_t*>(memory + 3 * kPanelBytes); }

// What a kernel leaves out, or does too early.
enum Fault { kNone, kNoWait, kNoProxyFence, kUnaligned, kNoFence, kEarly, kReused, kNoEnd, kOneWarp, kWritten };

// out = the box at (column, row) as it lies in shared memory, in order of addresses.
__global__ void copy(const __grid_constant__ CUtensorMap map, int column, int row, int fault, unsigned char* out) {
  unsigned char* const to = aligned_memory() + (fault == kUnaligned ? 128 : 0);
  uint64_t* const barrier = barrier_of(aligned_memory());
  if (threadIdx.x == 0) {
    mbarrier_init(barrier, 1);
    if (fault != kNoProxyFence) fence_proxy_async();
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    mbarrier_arrive_expect(barrier, kPanelBytes);
    copy_box(to, &map, column, row, barrier);
  }
  if (fault == kNoEnd) return;
  if (fault != kNoWait) mbarrier_wait(barrier, 0);
  for (int i = threadIdx.x; i < kPanelBytes; i += kThreads) out[i] = to[i];
  if (fault == kNoWait) mbarrier_wait(barrier, 0);
}

// Rows of 128 bytes, swizzled as the copy engine would write them.
__device__ void fill(unsigned char* panel, const __half* from, int columns) {
  for (int i = threadIdx.x; i < kRows * 64; i += kThreads) {
    const int row = i / 64, column = i % 64, place = (column / 8 ^ row % 8) * 8 + column % 8;
    reinterpret_cast<__half*>(panel)[row * 64 + place] = column < columns ? from[row * columns + column] : __half(0);
  }
}

// d = a b^T with both in shared memory, then (if `twice`) d = (a b^T, rounded) b: [64, 64], 64 columns to multiply.
__global__ void multiply(const __half* a, const __half* b, float* d, bool twice, int fault) {
  unsigned char *const first = aligned_memory(), *const second = first + kPanelBytes;
  fill(first, a, 64);
  fill(second, b, 64);
  if (fault != kNoProxyFence) fence_proxy_async();
  __syncthreads();
  float sums[8][4] = {}, more[8][4] = {};
  uint32_t factors[4][4];
  if (fault != kNoFence) wgmma_fence(sums, more);
  if (fault == kWritten) sums[0][0] = 1;
  for (int k = 0; k < 4; ++k) {
    const int moved = fault == kOneWarp && threadIdx.x / 32 == 2 ? 0 : 2 * k;
    wgmma(sums, descriptor(first, 0, 1024) + moved, descriptor(second, 0, 1024) + 2 * k, k > 0, Tag<__half>{});
  }
  wgmma_commit();
  if (fault == kNoEnd) return;
  if (fault == kReused) second[threadIdx.x] = 0;
  if (fault == kReused) fence_proxy_async();
  if (fault == kEarly) d[threadIdx.x] = sums[0][0];
  wgmma_wait<0>(sums);
  if (fault == kEarly) return;
  if (twice) {
    for (int k = 0; k < 4; ++k) {
      for (int i = 0; i < 4; ++i) {
        const float* const pair = sums[2 * k + i / 2] + i % 2 * 2;
        const __half2 both = __floats2half2_rn(pair[0], pair[1]);
        std::memcpy(&factors[k][i], &both, 4);
      }
    }
    wgmma_fence(more, factors);
    for (int k = 0; k < 4; ++k) wgmma(more, factors[k], descriptor(second, 0, 1024) + k * 128, Tag<__half>{});
    wgmma_commit();
    wgmma_wait<0>(more);
  }
  const int row = threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4, column = threadIdx.x % 4 * 2;
  for (int n = 0; n < 8; ++n) {
    for (int i = 0; i < 4; ++i) d[(row + i / 2 * 8) * 64 + n * 8 + column + i % 2] = (twice ? more : sums)[n][i];
  }
}

// Two of three warps exchange numbers; the third waits for an arrival, which comes unless the fault is kNoEnd.
__global__ void meet(float* out, int fault) {
  float* const held = reinterpret_cast<float*>(shared_memory());
  uint64_t* const barrier = barrier_of(aligned_memory());
  if (threadIdx.x == 0) mbarrier_init(barrier, 2);
  __syncthreads();
  if (threadIdx.x >= 64) {
    mbarrier_wait(barrier, 0);
    out[threadIdx.x] = held[threadIdx.x - 64] + held[threadIdx.x - 32];
    return;
  }
  held[threadIdx.x] = static_cast<float>(threadIdx.x);
  if (fault != kNoWait) barrier_sync(1, 64);
  out[threadIdx.x] = held[threadIdx.x ^ 32];
  if (threadIdx.x % 32 == 0 && !(fault == kNoEnd && threadIdx.x == 32)) mbarrier_arrive(barrier);
}

const char* error_of(cudaError_t error) { return error == cudaSuccess ? nullptr : cudaGetErrorString(error); }

const char* run_copy(Call& call) {
  const cuuint64_t sizes[2] = {static_cast<cuuint64_t>(call.integer()), static_cast<cuuint64_t>(call.integer())};
  const cuuint64_t stride = static_cast<cuuint64_t>(call.integer()) * 2;
  const cuuint32_t box[2] = {64, kRows}, every[2] = {1, 1};
  CUtensorMap map;
  const auto result =
      mixfast::emulator::encode_map(&map, CU_TENSOR_MAP_DATA_TYPE_FLOAT16, 2, call.buffer(), sizes, &stride, box, every,
                                    CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                                    CU_TENSOR_MAP_L2_PROMOTION_NONE, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS) return "no such map";
  const auto column = call.integer(), row = call.integer(), fault = call.integer();
  return error_of(launch(copy, 1, kThreads, kBytes, nullptr, map, column, row, fault, call.buffer<unsigned char>()));
}

const char* run_multiply(Call& call) {
  const auto *a = call.buffer<__half>(), *b = call.buffer<__half>();
  auto* d = call.buffer<float>();
  const bool twice = call.integer() != 0;
  return error_of(launch(multiply, 1, kThreads, kBytes, nullptr, a, b, d, twice, call.integer()));
}

const char* run_meet(Call& call) {
  auto* out = call.buffer<float>();
  return error_of(launch(meet, 1, 96, kBytes, nullptr, out, call.integer()));
}

}  // namespace

int main() { return mixfast::emulator::serve({{"copy", run_copy}, {"multiply", run_multiply}, {"meet", run_meet}}); }
