// SPDX-License-Identifier: MIT
// Small kernels for tests/cuda/test_emulator.py: right ones, and one for each fault that the emulator must find.
#include "common/ptx.cuh"
#include "driver.h"

namespace {

using mixfast::emulator::Call;
using namespace mixfast::gpu;

constexpr int kThreads = 64;

float* shared_floats() { return reinterpret_cast<float*>(shared_memory()); }

// out[i] = in[(i + 33) % 64], through shared memory: the neighbour is in the other warp.
__global__ void exchange(const float* in, float* out, bool barrier) {
  float* held = shared_floats();
  held[threadIdx.x] = in[threadIdx.x];
  if (barrier) __syncthreads();
  out[threadIdx.x] = held[(threadIdx.x + 33) % kThreads];
}

// The same within a warp.
__global__ void exchange_in_warp(const float* in, float* out, bool barrier) {
  float* held = shared_floats();
  held[threadIdx.x] = in[threadIdx.x];
  if (barrier) __syncwarp();
  out[threadIdx.x] = held[threadIdx.x ^ 1];
}

// Block b reads what block b - 1 has written.
__global__ void chain_of_blocks(const float* in, float* out) {
  const unsigned i = blockIdx.x * kThreads + threadIdx.x;
  out[i] = blockIdx.x == 0 ? in[threadIdx.x] : out[i - kThreads + (threadIdx.x ? -1 : 0)];
}

__global__ void write_beyond(float* out, int global, int shared) {
  shared_floats()[threadIdx.x + shared] = 1;
  out[threadIdx.x + global] = 2;
}

__global__ void read_unwritten(float* out) { out[threadIdx.x] = shared_floats()[threadIdx.x]; }

__global__ void read_misaligned(const float* in, float* out) {
  const float2 two = *reinterpret_cast<const float2*>(in + 1 + threadIdx.x / 2 * 2);
  out[threadIdx.x] = two.x + two.y;
}

__global__ void diverge(float* out, int how) {
  if (how == 0 && threadIdx.x == 5) return;  // misses the barrier
  if (how == 1 && threadIdx.x < 32) {
    __syncthreads();  // one barrier
  } else {
    __syncthreads();  // another
  }
  float value = 1;
  if (how != 2 || threadIdx.x % 32 < 16) value += __shfl_xor_sync(0xffffffffu, value, 1);
  out[threadIdx.x] = value;
}

__global__ void shuffle(const float* in, float* out, unsigned* ballot) {
  const int lane = threadIdx.x % 32;
  float* to = out + threadIdx.x * 4;
  const float value = in[threadIdx.x];
  to[0] = __shfl_xor_sync(0xffffffffu, value, 5);
  to[1] = __shfl_down_sync(0xffffffffu, value, 3);
  to[2] = __shfl_up_sync(0xffffffffu, value, 3);
  to[3] = __shfl_sync(0xffffffffu, value, (lane + 7) % 32);
  ballot[threadIdx.x] = __ballot_sync(0xffffffffu, value > 0);
}

__global__ void copy_async(const float* in, float* out, int waited, int rows) {
  float* held = shared_floats();
  for (int group = 0; group < 2; ++group) {
    const int at = group * kThreads * 4 + threadIdx.x * 4;
    cp_async_16(held + at, in + at, static_cast<int>(threadIdx.x) < rows);
    cp_async_commit();
  }
  if (waited == 1) cp_async_wait<1>();
  if (waited == 2) cp_async_wait<0>();
  __syncthreads();
  for (int i = threadIdx.x; i < kThreads * 8; i += kThreads) out[i] = held[i];
}

// d[16, 8] = c + a[16, 16] b[16, 8], with b given as it is and as b^T, in shared memory.
template <class T>
__global__ void multiply(const T* a, const T* b, const T* b_transposed, float* d, bool transposed) {
  auto* held = reinterpret_cast<T*>(shared_memory());
  T *held_a = held, *held_b = held + 256, *held_bt = held + 256 + 128;
  const int lane = threadIdx.x;
  for (int i = lane; i < 256; i += 32) held_a[i] = a[i];
  for (int i = lane; i < 128; i += 32) {
    held_b[i] = b[i];
    held_bt[i] = b_transposed[i];
  }
  __syncthreads();
  uint32_t of_a[4], of_b[4];
  ldmatrix_x4(of_a, held_a + lane % 16 * 16 + lane / 16 * 8);
  if (transposed) {
    ldmatrix_x4(of_b, held_bt + lane % 8 * 16 + lane / 8 % 2 * 8);
  } else {
    ldmatrix_x4_trans(of_b, held_b + lane % 16 * 8);
  }
  const uint32_t two[2] = {of_b[0], of_b[1]};
  const int row = lane / 4, column = lane % 4 * 2;
  float sums[4] = {d[row * 8 + column], d[row * 8 + column + 1], d[row * 8 + 64 + column], d[row * 8 + 65 + column]};
  mma_m16n8k16(sums, of_a, two, Tag<T>{});
  for (int i = 0; i < 4; ++i) d[(row + i / 2 * 8) * 8 + column + i % 2] = sums[i];
}

__global__ void approximate(const float* in, float* out) { out[threadIdx.x] = exp2_approx(in[threadIdx.x]); }

const char* error_of(cudaError_t error) { return error == cudaSuccess ? nullptr : cudaGetErrorString(error); }

template <auto kernel, int kBlocks = 1, int kBytes = kThreads * 4>
const char* in_out(Call& call) {
  const auto* in = call.buffer<float>();
  return error_of(launch(kernel, kBlocks, kThreads, kBytes, nullptr, in, call.buffer<float>()));
}

template <auto kernel>
const char* in_out_flag(Call& call) {
  const auto* in = call.buffer<float>();
  auto* out = call.buffer<float>();
  return error_of(launch(kernel, 1, kThreads, kThreads * 4, nullptr, in, out, call.integer() != 0));
}

const char* run_write_beyond(Call& call) {
  auto* out = call.buffer<float>();
  const auto global = call.integer();
  return error_of(launch(write_beyond, 1, kThreads, kThreads * 4, nullptr, out, global, call.integer()));
}

const char* run_read_unwritten(Call& call) {
  return error_of(launch(read_unwritten, 1, kThreads, kThreads * 4, nullptr, call.buffer<float>()));
}

const char* run_diverge(Call& call) {
  auto* out = call.buffer<float>();
  return error_of(launch(diverge, 1, kThreads, 0, nullptr, out, call.integer()));
}

const char* run_shuffle(Call& call) {
  const auto* in = call.buffer<float>();
  auto* out = call.buffer<float>();
  return error_of(launch(shuffle, 1, kThreads, 0, nullptr, in, out, call.buffer<unsigned>()));
}

const char* run_copy_async(Call& call) {
  const auto* in = call.buffer<float>();
  auto* out = call.buffer<float>();
  const auto waited = call.integer();
  return error_of(launch(copy_async, 1, kThreads, kThreads * 32, nullptr, in, out, waited, call.integer()));
}

template <class T>
const char* run_multiply(Call& call) {
  const T *a = call.buffer<T>(), *b = call.buffer<T>(), *b_transposed = call.buffer<T>();
  auto* d = call.buffer<float>();
  return error_of(launch(multiply<T>, 1, 32, 1024, nullptr, a, b, b_transposed, d, call.integer() != 0));
}

const char* run_launch(Call& call) {
  const auto blocks = static_cast<unsigned>(call.integer()), threads = static_cast<unsigned>(call.integer());
  const auto bytes = static_cast<size_t>(call.integer());
  return error_of(launch(read_unwritten, blocks, threads, bytes, nullptr, call.buffer<float>()));
}

}  // namespace

int main() {
  return mixfast::emulator::serve({{"exchange", in_out_flag<exchange>},
                                   {"exchange_in_warp", in_out_flag<exchange_in_warp>},
                                   {"chain_of_blocks", in_out<chain_of_blocks, 3>},
                                   {"write_beyond", run_write_beyond},
                                   {"read_unwritten", run_read_unwritten},
                                   {"read_misaligned", in_out<read_misaligned>},
                                   {"diverge", run_diverge},
                                   {"shuffle", run_shuffle},
                                   {"copy_async", run_copy_async},
                                   {"multiply_half", run_multiply<__half>},
                                   {"multiply_bfloat16", run_multiply<__nv_bfloat16>},
                                   {"approximate", in_out<approximate>},
                                   {"launch", run_launch}});
}
