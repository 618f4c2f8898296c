// SPDX-License-Identifier: MIT
// The instruction set to use: the best of the processor, or less if MIXFAST_CPU is "baseline" or "avx2", so that tests
// can run the code for other processors.
#pragma once

#include <cstdlib>
#include <cstring>

namespace mixfast {

static inline bool asked_for(const char* level) {
  const char* wanted = std::getenv("MIXFAST_CPU");
  return wanted != nullptr && std::strcmp(wanted, level) == 0;
}

// AVX2 and FMA. (Every processor with both has F16C too, which older compilers cannot ask for.)
static inline bool has_avx2() {
#if defined(__x86_64__)
  return !asked_for("baseline") && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#else
  return false;
#endif
}

// AVX-512 F, BW, DQ, VL and BF16: Zen 4, Cooper Lake, Sapphire Rapids and later.
static inline bool has_avx512_bf16() {
#if defined(__x86_64__)
  return has_avx2() && !asked_for("avx2") && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512bf16");
#else
  return false;
#endif
}

}  // namespace mixfast
