// SPDX-License-Identifier: MIT
// The program that tests/cuda/emulated.py talks to: reads calls of named operations from stdin, answers on stdout.
//   call     name order operands\n, then each operand: i 3\n, r 0x1p-3\n, n\n (null) or b bytes offset\n and the bytes
//   answer   ok\n and the bytes of every buffer, or one line that says what went wrong
#pragma once

#include <cstdio>
#include <cstdlib>
#include <initializer_list>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "cuda_emulator.h"

namespace mixfast::emulator {

// The operands of a call, taken one by one in the order in which Python gave them.
class Call {
 public:
  explicit Call(int operands) {
    for (int i = 0; i < operands; ++i) operands_.push_back(read());
  }

  int64_t integer() { return std::get<int64_t>(operands_.at(next_++)); }
  double real() { return std::get<double>(operands_.at(next_++)); }

  // Null for None. Each buffer is an allocation of its own, aligned to 256 bytes plus the call's offset.
  template <class T = void>
  T* buffer() {
    return reinterpret_cast<T*>(std::get<Buffer>(operands_.at(next_++)).data());
  }

  void answer() const {
    for (const auto& operand : operands_) {
      if (const auto* buffer = std::get_if<Buffer>(&operand); buffer && buffer->size() > 0)
        std::fwrite(buffer->data(), 1, buffer->size(), stdout);
    }
  }

  bool all_taken() const { return next_ == operands_.size(); }

 private:
  using Operand = std::variant<int64_t, double, Buffer>;

  static Operand read() {
    char kind;
    size_t bytes, offset;
    long long integer;
    double real;
    if (std::scanf(" %c", &kind) != 1) std::exit(2);
    if (kind == 'n') return Buffer();
    if (kind == 'i' && std::scanf("%lld", &integer) == 1) return static_cast<int64_t>(integer);
    if (kind == 'r' && std::scanf("%la", &real) == 1) return real;
    if (kind != 'b' || std::scanf("%zu %zu", &bytes, &offset) != 2 || std::getchar() != '\n') std::exit(2);
    Buffer buffer(bytes, 256, offset);
    if (std::fread(buffer.data(), 1, bytes, stdin) != bytes) std::exit(2);
    return buffer;
  }

  std::vector<Operand> operands_;
  size_t next_ = 0;
};

using Operation = const char* (*)(Call&);  // an error's description, or null

inline std::string run_call(std::initializer_list<std::pair<const char*, Operation>> operations, const char* name,
                            Call& call) {
  for (const auto& [known, operation] : operations) {
    if (std::string(known) != name) continue;
    const char* error = operation(call);
    return error ? error : call.all_taken() ? "" : "operands are left over";
  }
  return std::string("no operation ") + name;
}

// The body of main().
inline int serve(std::initializer_list<std::pair<const char*, Operation>> operations) {
  char name[64];
  long long order;
  int operands;
  while (std::scanf("%63s %lld %d", name, &order, &operands) == 3) {
    Call call(operands);
    set_order(order);
    const std::string error = run_call(operations, name, call);
    std::printf("%s\n", error.empty() ? "ok" : error.c_str());
    if (error.empty()) call.answer();
    std::fflush(stdout);
  }
  return 0;
}

}  // namespace mixfast::emulator
