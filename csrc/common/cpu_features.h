// SPDX-License-Identifier: MIT
// Which instruction set to use: what the processor has, unless MIXFAST_CPU=baseline asks for none (a test's way to
// reach the code that other processors run).
#pragma once

#include <cstdlib>
#include <cstring>

namespace mixfast {

static inline bool baseline_only() {
  const char* wanted = std::getenv("MIXFAST_CPU");
  return wanted != nullptr && std::strcmp(wanted, "baseline") == 0;
}

static inline bool has_avx2() {
#if defined(__x86_64__)
  return !baseline_only() && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("f16c");
#else
  return false;
#endif
}

}  // namespace mixfast
