// SPDX-License-Identifier: MIT
// The functions of csrc/common/hopper.cuh. What the hardware does beside the threads is done as late, as early or as
// irregularly as the order says, and what threads may not touch meanwhile is NaN.
// Copies    arrive when all threads wait, at once, or at some time between
// wgmma     reads its operands where it is issued, and must find the same when it is waited for; its sums are NaN until
//           then. Registers must be as the last wgmma_fence() left them.
// Proxies   copies and wgmma have their own view of shared memory; fence_proxy_async() shows them what threads wrote
#pragma once

#include <cuda.h>

#include "cuda_emulator.h"

namespace mixfast::emulator {

constexpr uint32_t kSharedStart = 384;  // the address of a block's shared memory, as aligned as it must be and no more

uint32_t shared_address(const void* pointer);
const unsigned char* async_view(uint32_t address, size_t bytes, const Site& site);  // what copies and wgmma see there

// The layout that swizzling mode 1 of wgmma and CU_TENSOR_MAP_SWIZZLE_128B share: Swizzle<3, 4, 3> of addresses.
constexpr uint32_t swizzled(uint32_t address) { return address ^ (address >> 7 & 7) << 4; }

CUresult encode_map(CUtensorMap* map, CUtensorMapDataType type, cuuint32_t rank, void* address, const cuuint64_t* sizes,
                    const cuuint64_t* strides, const cuuint32_t* box, const cuuint32_t* element_strides,
                    CUtensorMapInterleave interleave, CUtensorMapSwizzle swizzle, CUtensorMapL2promotion l2,
                    CUtensorMapFloatOOBfill fill);
void begin_barrier(uint64_t* barrier, int arrivals, const Site& site);
void arrive(uint64_t* barrier, int bytes, const Site& site);
void wait_phase(uint64_t* barrier, int parity, const Site& site);
void meet_some(int number, int threads, const Site& site);
void show_to_async();
void start_box(void* shared, const CUtensorMap* map, int column, int row, uint64_t* barrier, const Site& site);

// One product of a warpgroup, as a lane issues it: d[64, 8 columns] (+)= a b. Null `a`: it is in shared memory.
struct Product {
  float* d;
  int columns;  // groups of 8
  bool add;
  const uint32_t* a;
  uint64_t a_place, b_place;
  double (*number)(uint16_t);
  Site site;
};
void fence_registers(const void* registers, size_t bytes);
void start_product(const Product& product);
void close_products(const Site& site);
void finish_products(size_t groups_left, const Site& site);
void begin_products(int threads);  // of a block
void end_products();

template <class T>
double number_of(uint16_t bits) {
  return as_float(std::bit_cast<T>(bits));
}

}  // namespace mixfast::emulator

namespace mixfast::gpu {

constexpr int kWarpgroup = 128;

inline uint32_t shared_address(const void* shared) { return emulator::shared_address(shared); }

inline void mbarrier_init(uint64_t* barrier, int arrivals, const emulator::Site site = emulator::Site::current()) {
  emulator::begin_barrier(barrier, arrivals, site);
}
inline void mbarrier_arrive(uint64_t* barrier, const emulator::Site site = emulator::Site::current()) {
  emulator::arrive(barrier, 0, site);
}
inline void mbarrier_arrive_expect(uint64_t* barrier, int bytes,
                                   const emulator::Site site = emulator::Site::current()) {
  emulator::arrive(barrier, bytes, site);
}
inline void mbarrier_wait(uint64_t* barrier, int parity, const emulator::Site site = emulator::Site::current()) {
  emulator::wait_phase(barrier, parity, site);
}
inline void fence_proxy_async() { emulator::show_to_async(); }
inline void barrier_sync(int number, int threads, const emulator::Site site = emulator::Site::current()) {
  emulator::meet_some(number, threads, site);
}
template <int kRegisters>
void give_registers() {
  static_assert(kRegisters % 8 == 0 && 24 <= kRegisters && kRegisters <= 256);
}
template <int kRegisters>
void take_registers() {
  give_registers<kRegisters>();
}

inline void copy_box(void* shared, const CUtensorMap* map, int column, int row, uint64_t* barrier,
                     const emulator::Site site = emulator::Site::current()) {
  emulator::start_box(shared, map, column, row, barrier, site);
}

inline uint64_t descriptor(const void* shared, int leading, int stride) {
  const auto encoded = [](uint64_t bytes) { return (bytes & 0x3ffff) >> 4; };
  return encoded(shared_address(shared)) | encoded(leading) << 16 | encoded(stride) << 32 | uint64_t{1} << 62;
}

template <class... Registers>
void wgmma_fence(Registers&... registers) {
  (emulator::fence_registers(&registers, sizeof(registers)), ...);
}
inline void wgmma_commit(const emulator::Site site = emulator::Site::current()) { emulator::close_products(site); }
template <int N, class... Registers>
void wgmma_wait(Registers&...) {
  emulator::finish_products(N, emulator::Site::current());
}

template <int kColumns, class T>
void wgmma(float (&d)[kColumns][4], uint64_t a, uint64_t b, bool add, Tag<T>,
           const emulator::Site site = emulator::Site::current()) {
  emulator::start_product({d[0], kColumns, add, nullptr, a, b, emulator::number_of<T>, site});
}
template <int kColumns, class T>
void wgmma(float (&d)[kColumns][4], const uint32_t (&a)[4], uint64_t b, Tag<T>,
           const emulator::Site site = emulator::Site::current()) {
  emulator::start_product({d[0], kColumns, true, a, 0, b, emulator::number_of<T>, site});
}

}  // namespace mixfast::gpu
