// SPDX-License-Identifier: MIT
// The instruction sets for which the kernels of the losses are compiled.
#pragma once

#include <vector>

#include "common/cpu_features.h"

namespace mixfast {

enum class Isa : int { kBaseline, kAvx2, kAvx512 };

static inline bool has_avx512() {
#if defined(__x86_64__)
  return has_avx2() && !asked_for("avx2") && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
#else
  return false;
#endif
}

// What this processor can run, from slow to fast.
static inline std::vector<Isa> instruction_sets() {
  std::vector<Isa> sets = {Isa::kBaseline};
  if (has_avx2()) sets.push_back(Isa::kAvx2);
  if (has_avx512()) sets.push_back(Isa::kAvx512);
  return sets;
}

}  // namespace mixfast
