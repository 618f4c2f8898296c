// SPDX-License-Identifier: MIT
// In which order blocks, warps and lanes run. A result that depends on it is a race.
#pragma once

#include <bit>
#include <cstdint>
#include <utility>
#include <vector>

namespace mixfast::emulator {

class Order {
 public:
  // kForward, kReverse, or a positive seed of a shuffle.
  explicit Order(int64_t kind) : kind_(kind), state_(static_cast<uint64_t>(kind) * 0x9e3779b97f4a7c15 + 1) {}

  std::vector<uint64_t> blocks(uint64_t count) {
    std::vector<uint64_t> all(count);
    for (uint64_t b = 0; b < count; ++b) all[b] = kind_ == kReverse ? count - 1 - b : b;
    for (uint64_t b = count; shuffled() && b > 1; --b) std::swap(all[b - 1], all[draw(b)]);
    return all;
  }

  // One of [0, count).
  int index(int count) {
    return kind_ == kForward ? 0 : kind_ == kReverse ? count - 1 : static_cast<int>(draw(static_cast<uint64_t>(count)));
  }

  // Whether what is under way beside the threads gets on now: never before they wait, at once, or by chance.
  bool early() { return kind_ == kReverse || (shuffled() && draw(4) == 0); }

  // One of the set bits of a mask.
  int bit(uint32_t mask) {
    if (kind_ == kForward) return std::countr_zero(mask);
    if (kind_ == kReverse) return 31 - std::countl_zero(mask);
    for (auto skipped = draw(std::popcount(mask)); skipped > 0; --skipped) mask &= mask - 1;
    return std::countr_zero(mask);
  }

 private:
  bool shuffled() const { return kind_ > 0; }

  uint64_t draw(uint64_t below) {  // xorshift64*
    state_ ^= state_ >> 12;
    state_ ^= state_ << 25;
    state_ ^= state_ >> 27;
    return (state_ * 0x2545f4914f6cdd1d >> 32) % below;
  }

  int64_t kind_;
  uint64_t state_;
};

}  // namespace mixfast::emulator
