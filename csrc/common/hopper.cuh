// SPDX-License-Identifier: MIT
// The PTX instructions of sm_90a that kernels use, one function each: barriers in shared memory (mbarrier), copies of
// boxes of a tensor (TMA), products by four warps (wgmma). The emulator (launch.cuh) has the same for the host.
// Proxies   the copies and wgmma reach shared memory by the async proxy: what threads have written there they see only
//           after fence_proxy_async (PTX ISA, "Async proxy"); what a copy has written any thread that waited sees
// Layout    of a matrix of 16-bit numbers: panels of 64 columns, [rows][128 bytes] each, at a multiple of 1024; the 16
//           bytes of chunk c of row r lie at place c ^ (r % 8). CU_TENSOR_MAP_SWIZZLE_128B writes so, and wgmma's
//           descriptors with swizzling mode 1 read so (PTX ISA, "Shared Memory Matrix Layout", Swizzle<3, 4, 3>)
#pragma once

#include "common/ptx.cuh"

#ifdef __CUDACC__
#include <cuda.h>

#include <type_traits>

namespace mixfast::gpu {

constexpr int kWarpgroup = 128;  // threads that issue wgmma together

// Phases of a barrier end when `arrivals` threads have arrived and all announced bytes are there.
__device__ inline void mbarrier_init(uint64_t* barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;\n" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
}

__device__ inline void mbarrier_arrive(uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];\n" ::"r"(shared_address(barrier)) : "memory");
}

// Announces bytes that copies will bring in this phase, and arrives.
__device__ inline void mbarrier_arrive_expect(uint64_t* barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;\n" ::"r"(shared_address(barrier)), "r"(bytes)
               : "memory");
}

// Waits for the end of the phase of this parity: 0 for the first, 1 for the second, and so on.
__device__ inline void mbarrier_wait(uint64_t* barrier, int parity) {
  uint32_t over;
  do {
    asm volatile("{\n.reg .pred p;\nmbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}\n"
                 : "=r"(over)
                 : "r"(shared_address(barrier)), "r"(parity)
                 : "memory");
  } while (over == 0);
}

// Makes this thread's writes to shared memory, barriers' beginnings too, visible to copies and wgmma.
__device__ inline void fence_proxy_async() { asm volatile("fence.proxy.async.shared::cta;\n" ::: "memory"); }

// A barrier of some warps of the block; numbers from 1 on, 0 is __syncthreads().
__device__ inline void barrier_sync(int number, int threads) {
  asm volatile("barrier.sync %0, %1;\n" ::"r"(number), "r"(threads) : "memory");
}

// Registers of a thread from here on; all warps of a warpgroup.
template <int kRegisters>
__device__ inline void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;\n" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ inline void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;\n" ::"n"(kRegisters));
}

// Starts a copy of the map's box at (column, row) to shared memory, aligned to 1024; zeros outside the tensor.
__device__ inline void copy_box(void* shared, const CUtensorMap* map, int column, int row, uint64_t* barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], "
      "[%4];\n" ::"r"(shared_address(shared)),
      "l"(map), "r"(column), "r"(row), "r"(shared_address(barrier))
      : "memory");
}

// Where wgmma finds a matrix (PTX ISA, "Matrix Descriptor Format"). `stride` bytes between groups of eight rows;
// `leading` bytes between panels where rows are what is summed over, else without meaning. Adding bytes / 16 to a
// descriptor moves it.
__device__ inline uint64_t descriptor(const void* shared, int leading, int stride) {
  return (shared_address(shared) & 0x3ffffu) >> 4 | uint64_t(leading >> 4) << 16 | uint64_t(stride >> 4) << 32 |
         uint64_t(1) << 62;
}

template <int kColumns>
__device__ inline void pin(float (&registers)[kColumns][4]) {
#pragma unroll
  for (int n = 0; n < kColumns; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) asm volatile("" : "+f"(registers[n][i])::"memory");
  }
}
template <int kColumns>
__device__ inline void pin(uint32_t (&registers)[kColumns][4]) {
#pragma unroll
  for (int n = 0; n < kColumns; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) asm volatile("" : "+r"(registers[n][i])::"memory");
  }
}

// Before wgmma reads or adds to registers that other instructions have written or read.
template <class... Registers>
__device__ inline void wgmma_fence(Registers&... registers) {
  (pin(registers), ...);
  asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory");
}

// Closes the group of the products since the last commit.
__device__ inline void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;\n" ::: "memory"); }

// Waits until at most the last N groups are under way; `registers` are those of the groups that are not.
template <int N, class... Registers>
__device__ inline void wgmma_wait(Registers&... registers) {
  asm volatile("wgmma.wait_group.sync.aligned %0;\n" ::"n"(N) : "memory");
  (pin(registers), ...);
}

// What follows names the 4 registers of each 8 columns, as operands and in the text of an instruction.
#define MIXFAST_4(d, n) "+f"(d[n][0]), "+f"(d[n][1]), "+f"(d[n][2]), "+f"(d[n][3])
#define MIXFAST_32(d, n)                                                                               \
  MIXFAST_4(d, n), MIXFAST_4(d, n + 1), MIXFAST_4(d, n + 2), MIXFAST_4(d, n + 3), MIXFAST_4(d, n + 4), \
      MIXFAST_4(d, n + 5), MIXFAST_4(d, n + 6), MIXFAST_4(d, n + 7)
#define MIXFAST_NAMES_32                                                                               \
  "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26," \
  "%27,%28,%29,%30,%31"
#define MIXFAST_NAMES_64                                                                              \
  MIXFAST_NAMES_32                                                                                    \
  ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55," \
  "%56,%57,%58,%59,%60,%61,%62,%63"
// d = a b^T or d += a b^T, a and b by their descriptors.
#define MIXFAST_BOTH_SHARED(columns, type, names, a_name, b_name, add_name, ...)                              \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " add_name ", 0;\nwgmma.mma_async.sync.aligned.m64n" columns \
               "k16.f32." type "." type " {" names "}, " a_name ", " b_name ", p, 1, 1, 0, 0;\n}\n"           \
               : __VA_ARGS__                                                                                  \
               : "l"(a), "l"(b), "r"(int(add)))
// d += a b, a in registers and b by its descriptor.
#define MIXFAST_ONE_SHARED(columns, type, names, a_names, b_name, ...)                                             \
  asm volatile("{\n.reg .pred p;\nsetp.eq.b32 p, 0, 0;\nwgmma.mma_async.sync.aligned.m64n" columns "k16.f32." type \
               "." type " {" names "}, {" a_names "}, " b_name ", p, 1, 1, 1;\n}\n"                                \
               : __VA_ARGS__                                                                                       \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b))

// d[64, N] (+)= a[64, 16] b[N, 16]^T, both in shared memory, rows of 128 bytes; N = 8 kColumns. A thread has of d what
// mma_m16n8k16 gives it of each 8 columns, its warp the rows from 16 times its number in the warpgroup on.
template <int kColumns, class T>
__device__ inline void wgmma(float (&d)[kColumns][4], uint64_t a, uint64_t b, bool add, Tag<T>) {
  static_assert(kColumns == 8 || kColumns == 16);
  constexpr bool kHalf = std::is_same_v<T, __half>;
  if constexpr (kColumns == 8 && kHalf) {
    MIXFAST_BOTH_SHARED("64", "f16", MIXFAST_NAMES_32, "%32", "%33", "%34", MIXFAST_32(d, 0));
  } else if constexpr (kColumns == 8) {
    MIXFAST_BOTH_SHARED("64", "bf16", MIXFAST_NAMES_32, "%32", "%33", "%34", MIXFAST_32(d, 0));
  } else if constexpr (kHalf) {
    MIXFAST_BOTH_SHARED("128", "f16", MIXFAST_NAMES_64, "%64", "%65", "%66", MIXFAST_32(d, 0), MIXFAST_32(d, 8));
  } else {
    MIXFAST_BOTH_SHARED("128", "bf16", MIXFAST_NAMES_64, "%64", "%65", "%66", MIXFAST_32(d, 0), MIXFAST_32(d, 8));
  }
}

// d[64, N] += a[64, 16] b[16, N], a as mma_m16n8k16 takes it, b in shared memory, rows of 128 bytes in panels.
template <int kColumns, class T>
__device__ inline void wgmma(float (&d)[kColumns][4], const uint32_t (&a)[4], uint64_t b, Tag<T>) {
  static_assert(kColumns == 8 || kColumns == 16);
  constexpr bool kHalf = std::is_same_v<T, __half>;
  if constexpr (kColumns == 8 && kHalf) {
    MIXFAST_ONE_SHARED("64", "f16", MIXFAST_NAMES_32, "%32,%33,%34,%35", "%36", MIXFAST_32(d, 0));
  } else if constexpr (kColumns == 8) {
    MIXFAST_ONE_SHARED("64", "bf16", MIXFAST_NAMES_32, "%32,%33,%34,%35", "%36", MIXFAST_32(d, 0));
  } else if constexpr (kHalf) {
    MIXFAST_ONE_SHARED("128", "f16", MIXFAST_NAMES_64, "%64,%65,%66,%67", "%68", MIXFAST_32(d, 0), MIXFAST_32(d, 8));
  } else {
    MIXFAST_ONE_SHARED("128", "bf16", MIXFAST_NAMES_64, "%64,%65,%66,%67", "%68", MIXFAST_32(d, 0), MIXFAST_32(d, 8));
  }
}

}  // namespace mixfast::gpu

#else
#include "emulated_hopper.h"
#endif
