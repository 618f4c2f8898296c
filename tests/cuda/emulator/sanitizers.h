// SPDX-License-Identifier: MIT
// What the sanitizers must be told of fibers; nothing without them. AddressSanitizer: which stack is in use.
// ThreadSanitizer: which fiber runs, and what orders memory between fibers (barriers do, a change of fibers does not).
#pragma once

#include <cstddef>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#elif defined(__SANITIZE_THREAD__)
extern "C" {
void* __tsan_get_current_fiber();
void* __tsan_create_fiber(unsigned flags);
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
void __tsan_acquire(void* address);
void __tsan_release(void* address);
void AnnotateIgnoreReadsBegin(const char* file, int line);
void AnnotateIgnoreReadsEnd(const char* file, int line);
void AnnotateIgnoreWritesBegin(const char* file, int line);
void AnnotateIgnoreWritesEnd(const char* file, int line);
}
#endif

namespace mixfast::emulator {

// A stack as the sanitizers know it; without bounds the host thread's own.
struct KnownStack {
  const void* stack = nullptr;
  size_t bytes = 0;
  void* state = nullptr;
};

#if defined(__SANITIZE_ADDRESS__)

inline void prepare(KnownStack&) {}
inline void leave(KnownStack& from, const KnownStack& to) {
  __sanitizer_start_switch_fiber(&from.state, to.stack, to.bytes);
}
inline void arrive(KnownStack& at) { __sanitizer_finish_switch_fiber(at.state, nullptr, nullptr); }
inline void arrive_first(KnownStack& from) { __sanitizer_finish_switch_fiber(nullptr, &from.stack, &from.bytes); }

#elif defined(__SANITIZE_THREAD__)

inline void prepare(KnownStack& known) { known.state = __tsan_create_fiber(0); }
inline void leave(KnownStack& from, const KnownStack& to) {
  constexpr unsigned kWithoutOrder = 1;
  if (!from.stack) from.state = __tsan_get_current_fiber();
  __tsan_switch_to_fiber(to.state, kWithoutOrder);
}
inline void arrive(KnownStack&) {}
inline void arrive_first(KnownStack&) {}

#else

inline void prepare(KnownStack&) {}
inline void leave(KnownStack&, const KnownStack&) {}
inline void arrive(KnownStack&) {}
inline void arrive_first(KnownStack&) {}

#endif

#if defined(__SANITIZE_THREAD__)

// What was written before release(address) is ordered before what follows acquire(address).
inline void release(char* address) { __tsan_release(address); }
inline void acquire(char* address) { __tsan_acquire(address); }

// While it lives, the fiber's own accesses are the emulator's and are not looked at.
struct Quiet {
  Quiet() {
    AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
    AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
  }
  ~Quiet() {
    AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
    AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
  }
};

#else

inline void release(char*) {}
inline void acquire(char*) {}
struct Quiet {
  Quiet() {}
};

#endif

}  // namespace mixfast::emulator
