// SPDX-License-Identifier: MIT
// A stack of its own that code runs on until it changes to another fiber.
#pragma once

#include <ucontext.h>

#include <cstdlib>
#include <memory>

#include "sanitizers.h"

namespace mixfast::emulator {

class Fiber {
 public:
  Fiber() : started_(true) {}  // the host thread's own stack

  explicit Fiber(void (*body)()) : memory_(std::make_unique_for_overwrite<unsigned char[]>(kStackBytes)) {
    getcontext(&start_);
    start_.uc_stack.ss_sp = memory_.get();
    start_.uc_stack.ss_size = kStackBytes;
    makecontext(&start_, body, 0);
    known_.stack = memory_.get();
    known_.bytes = kStackBytes;
    prepare(known_);
  }

  // Runs `to` until it changes back.
  __attribute__((noinline, no_sanitize("address", "thread", "undefined"))) void change(Fiber& to) {
    leave(known_, to.known_);
    if (__builtin_setjmp(registers_) == 0) to.resume();
    arrive(known_);
  }

  // The first act of a fiber that `from` has changed to.
  static void begin(Fiber& from) { arrive_first(from.known_); }

 private:
  static constexpr size_t kStackBytes = 256 << 10;

  // No swapcontext: it makes two system calls, and the sanitizers slow it down further.
  [[noreturn]] __attribute__((noinline, no_sanitize("address", "thread", "undefined"))) void resume() {
    if (started_) __builtin_longjmp(registers_, 1);
    started_ = true;
    setcontext(&start_);
    std::abort();
  }

  std::unique_ptr<unsigned char[]> memory_;
  ucontext_t start_{};
  void* registers_[5];
  bool started_ = false;
  KnownStack known_;
};

}  // namespace mixfast::emulator
