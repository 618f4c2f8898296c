// SPDX-License-Identifier: MIT
// CUDA kernels on the host: what csrc/common/launch.cuh and ptx.cuh include where nvcc does not compile.
// Kernels   compiled unchanged by g++ -std=c++20; each thread of a block is a fiber (emulator.cpp), on one host thread
// Order     of blocks, warps and lanes: forward, reverse or shuffled (set_order)
// Checked   barriers and warp collectives that some of the threads miss; with AddressSanitizer every access to global
//           and shared memory; with ThreadSanitizer every race: only barriers order the threads. Shared memory and
//           copies under way hold NaN bytes.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <source_location>

#define __launch_bounds__(...)
#undef __shared__
#define __shared__ _Pragma("GCC error \"shared memory comes from mixfast::gpu::shared_memory()\"")

inline uint3 threadIdx, blockIdx;  // of the fiber that runs
inline dim3 blockDim, gridDim;

namespace mixfast::emulator {

using Site = std::source_location;
constexpr int kWarpSize = 32;

// Memory aligned to `alignment` bytes, plus `offset` if given, and filled with NaN bytes; nothing beyond `size`.
class Buffer {
 public:
  Buffer() = default;
  Buffer(size_t size, size_t alignment, size_t offset = 0) : size_(size), offset_(offset) {
    void* memory = nullptr;
    if (posix_memalign(&memory, alignment, size + offset) != 0) std::abort();
    memory_.reset(static_cast<unsigned char*>(memory));
    std::memset(data(), 0xff, size);
  }
  unsigned char* data() const { return memory_.get() + offset_; }
  size_t size() const { return size_; }

 private:
  struct Free {
    void operator()(unsigned char* memory) const { std::free(memory); }
  };
  std::unique_ptr<unsigned char, Free> memory_;
  size_t size_ = 0, offset_ = 0;
};

constexpr int64_t kForward = 0, kReverse = -1;  // positive: shuffled by this seed
void set_order(int64_t to);

// Computes the outputs of all lanes of a warp from their inputs.
using Exchange = void (*)(const void* const (&in)[kWarpSize], void* const (&out)[kWarpSize]);

[[noreturn]] void fail(const char* what, const Site& site);
void meet_block(const Site& site);
void meet_warp(unsigned lanes, Exchange exchange, const void* in, void* out, bool orders_memory, const Site& site);
cudaError_t run(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& kernel);
unsigned char* shared_memory();
void check_shared(const void* pointer, size_t bytes, const Site& site);
void copy_later(void* shared, const void* global, bool valid, const Site& site);
void close_copies();
void finish_copies(size_t groups_left);

// For what threads wait for besides barriers and collectives (emulated_hopper.h).
int current_thread();
int choose(int count);         // one of [0, count), by the order
void await(const Site& site);  // until another thread, or the scheduler, resumes this one
void resume(int thread);
void begin_asynchronous(const Buffer& shared, int threads);  // a block
void end_asynchronous();
bool finish_box();  // one of the copies under way, if there is one

// A collective: `all` computes the outputs of the lanes from the inputs of the lanes.
template <class In, class Out, void (*all)(const In* const*, Out* const*)>
Out collect(const In& in, const Site& site, unsigned lanes = 0xffffffffu) {
  Out out;
  const Exchange exchange = [](const void* const(&inputs)[kWarpSize], void* const(&outputs)[kWarpSize]) {
    const In* ins[kWarpSize];
    Out* outs[kWarpSize];
    for (int lane = 0; lane < kWarpSize; ++lane) {
      ins[lane] = static_cast<const In*>(inputs[lane]);
      outs[lane] = static_cast<Out*>(outputs[lane]);
    }
    all(ins, outs);
  };
  meet_warp(lanes, exchange, &in, &out, false, site);
  return out;
}

template <class T>
struct Shuffled {
  T value;
  int from;
};

template <class T>
void shuffle_all(const Shuffled<T>* const* in, T* const* out) {
  for (int lane = 0; lane < kWarpSize; ++lane) *out[lane] = in[in[lane]->from]->value;
}

template <class T>
T shuffle(unsigned lanes, T value, int from, const Site& site) {
  if (from < 0 || from >= kWarpSize) fail("a shuffle reads a lane outside the warp", site);
  return collect<Shuffled<T>, T, shuffle_all<T>>({value, from}, site, lanes);
}

inline void ballot_all(const int* const* in, unsigned* const* out) {
  unsigned bits = 0;
  for (int lane = 0; lane < kWarpSize; ++lane) bits |= static_cast<unsigned>(*in[lane] != 0) << lane;
  for (int lane = 0; lane < kWarpSize; ++lane) *out[lane] = bits;
}

inline int lane() { return static_cast<int>(threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z)) % 32; }

}  // namespace mixfast::emulator

inline void __syncthreads(const std::source_location site = std::source_location::current()) {
  mixfast::emulator::meet_block(site);
}

inline void __syncwarp(unsigned lanes = 0xffffffffu,
                       const std::source_location site = std::source_location::current()) {
  mixfast::emulator::meet_warp(lanes, nullptr, nullptr, nullptr, true, site);
}

template <class T>
T __shfl_sync(unsigned lanes, T value, int from, const std::source_location site = std::source_location::current()) {
  return mixfast::emulator::shuffle(lanes, value, from, site);
}

template <class T>
T __shfl_xor_sync(unsigned lanes, T value, int flip,
                  const std::source_location site = std::source_location::current()) {
  return mixfast::emulator::shuffle(lanes, value, mixfast::emulator::lane() ^ flip, site);
}

// As on the GPU, a lane whose source lies outside the warp gets its own value.
template <class T>
T __shfl_down_sync(unsigned lanes, T value, int delta,
                   const std::source_location site = std::source_location::current()) {
  const int lane = mixfast::emulator::lane();
  return mixfast::emulator::shuffle(lanes, value, lane + delta < 32 ? lane + delta : lane, site);
}

template <class T>
T __shfl_up_sync(unsigned lanes, T value, int delta,
                 const std::source_location site = std::source_location::current()) {
  const int lane = mixfast::emulator::lane();
  return mixfast::emulator::shuffle(lanes, value, lane - delta >= 0 ? lane - delta : lane, site);
}

inline unsigned __ballot_sync(unsigned lanes, int predicate,
                              const std::source_location site = std::source_location::current()) {
  return mixfast::emulator::collect<int, unsigned, mixfast::emulator::ballot_all>(predicate, site, lanes);
}

template <class T>
T __ldg(const T* from) {
  return *from;
}
template <class T>
T __ldcs(const T* from) {
  return *from;
}
template <class T>
void __stcs(T* to, T value) {
  *to = value;
}
template <class T>
T atomicAdd(T* to, T value) {
  return __atomic_fetch_add(to, value, __ATOMIC_RELAXED);
}
template <class T>
T atomicExch(T* to, T value) {
  return __atomic_exchange_n(to, value, __ATOMIC_RELAXED);
}
inline float __int_as_float(int bits) { return std::bit_cast<float>(bits); }
inline float __fdividef(float a, float b) { return a / b; }
inline int __float_as_int(float value) { return std::bit_cast<int>(value); }

#include "emulated_ptx.h"

namespace mixfast::gpu {

inline unsigned char* shared_memory() { return emulator::shared_memory(); }

template <class... Parameters, class... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t,
                   const Arguments&... arguments) {
  return emulator::run(grid, block, shared_bytes, [&] { kernel(static_cast<Parameters>(arguments)...); });
}

}  // namespace mixfast::gpu
