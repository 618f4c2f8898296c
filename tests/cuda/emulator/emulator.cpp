// SPDX-License-Identifier: MIT
// The scheduler of cuda_emulator.h: runs the blocks of a grid one after another, the threads of a block as fibers.
// A fiber runs until it waits for a barrier or a warp collective; the order chooses which one runs next, so that a
// warp runs as far ahead of the others as barriers let it.
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "cuda_emulator.h"
#include "fiber.h"
#include "order.h"
#include "runtime.h"

namespace mixfast::emulator {
namespace {

constexpr int kMostThreads = 1024;
constexpr size_t kMostSharedBytes = 227 << 10;

struct Copy {
  void* shared;
  const void* global;
  bool valid;
};
using Copies = std::vector<Copy>;

enum class State { kReady, kAtBarrier, kAtCollective, kAwaiting, kDone };

struct Thread {
  Fiber* fiber;
  State state;
  Site site;  // where it waits
  Exchange exchange;
  const void* in;
  void* out;
  Copies open;                 // cp.async since the last commit
  std::vector<Copies> groups;  // committed, the oldest first
};

struct Warp {
  uint32_t ready;
  int waiting;    // lanes at a collective
  int collected;  // collectives completed
};

Fiber main_fiber;
std::vector<std::unique_ptr<Fiber>> fibers;
std::vector<Thread> threads;  // of the current block
std::vector<Warp> warps;
std::vector<char> tokens;  // addresses by which ThreadSanitizer knows barriers: two of the block, two of each warp
Buffer shared;
const std::function<void()>* kernel;
int current, at_barrier, barriers, done;
char launched, finished;
Order order(kForward);

void run_threads() {
  Fiber::begin(main_fiber);
  for (;;) {
    acquire(&launched);
    (*kernel)();
    release(&finished);
    const Quiet quiet;
    threads[current].state = State::kDone;
    ++done;
    threads[current].fiber->change(main_fiber);
  }
}

Fiber& fiber(size_t index) {
  while (fibers.size() <= index) fibers.push_back(std::make_unique<Fiber>(run_threads));
  return *fibers[index];
}

void make_ready(int thread) {
  threads[thread].state = State::kReady;
  warps[thread / kWarpSize].ready |= 1u << thread % kWarpSize;
}

// The next thread to run, or -1 if all wait. Copies by the copy engine arrive in between, or when all wait for them.
int next_thread() {
  uint32_t ready = 0;
  while (order.early() && finish_box()) continue;
  for (size_t w = 0; w < warps.size(); ++w) ready |= static_cast<uint32_t>(warps[w].ready != 0) << w;
  if (!ready) return finish_box() ? next_thread() : -1;
  const int warp = order.bit(ready), lane = order.bit(warps[warp].ready);
  warps[warp].ready &= ~(1u << lane);
  return warp * kWarpSize + lane;
}

std::string whereabouts(int index) {
  const Thread& thread = threads[index];
  const std::string who = "thread " + std::to_string(index);
  if (thread.state == State::kDone) return who + " has exited";
  if (thread.state == State::kReady) return who + " runs";
  const char* const whom[] = {"the block", "its warp", "others"};
  const std::string what = std::string(" waits for ") + whom[static_cast<int>(thread.state) - 1] + " at ";
  return who + what + thread.site.file_name() + ":" + std::to_string(thread.site.line());
}

bool same_place(const Thread& one, const Thread& other) {
  return one.state == other.state && one.exchange == other.exchange && one.site.line() == other.site.line() &&
         one.site.column() == other.site.column() && std::strcmp(one.site.file_name(), other.site.file_name()) == 0;
}

// Ends the program unless threads [first, first + count) wait at the same place.
void require_same_place(int first, int count) {
  for (int i = first + 1; i < first + count; ++i) {
    if (same_place(threads[first], threads[i])) continue;
    const std::string what = "divergent threads: " + whereabouts(first) + ", " + whereabouts(i);
    fail(what.c_str(), threads[first].site);
  }
}

Thread& wait(State state, Exchange exchange, const Site& site) {
  Thread& thread = threads[current];
  thread.state = state;
  thread.exchange = exchange;
  thread.site = site;
  return thread;
}

void run_block() {
  const int count = static_cast<int>(threads.size());
  at_barrier = barriers = done = 0;
  for (int t = 0; t < count; ++t) make_ready(t);
  while (done < count) {
    current = next_thread();
    if (current < 0) {
      current = 0;
      for (int t = 0; t < count; ++t) {
        const std::string what = "no thread can go on: " + whereabouts(t);
        if (threads[t].state == State::kAwaiting) fail(what.c_str(), threads[t].site);
      }
      require_same_place(0, count);
    }
    const int x = static_cast<int>(blockDim.x), y = static_cast<int>(blockDim.y);
    threadIdx = {static_cast<unsigned>(current % x), static_cast<unsigned>(current / x % y),
                 static_cast<unsigned>(current / x / y)};
    main_fiber.change(*threads[current].fiber);
  }
}

}  // namespace

void set_order(int64_t to) { order = Order(to); }

void fail(const char* what, const Site& site) {
  std::fprintf(stderr, "emulator: %s\n  at %s:%u, block (%u, %u, %u), thread (%u, %u, %u)\n", what, site.file_name(),
               site.line(), blockIdx.x, blockIdx.y, blockIdx.z, threadIdx.x, threadIdx.y, threadIdx.z);
  std::fflush(stderr);
  std::_Exit(70);
}

int current_thread() { return current; }

int choose(int count) { return order.index(count); }

void await(const Site& site) {
  const Quiet quiet;
  wait(State::kAwaiting, nullptr, site);
  threads[current].fiber->change(main_fiber);
}

void resume(int thread) { make_ready(thread); }

void meet_block(const Site& site) {
  char* token;
  {
    const Quiet quiet;
    token = &tokens[barriers % 2];
    wait(State::kAtBarrier, nullptr, site);
  }
  release(token);
  {
    const Quiet quiet;
    if (++at_barrier == static_cast<int>(threads.size())) {
      require_same_place(0, at_barrier);
      at_barrier = 0;
      ++barriers;
      for (int t = 0; t < static_cast<int>(threads.size()); ++t) make_ready(t);
    }
    threads[current].fiber->change(main_fiber);
  }
  acquire(token);
}

void meet_warp(unsigned lanes, Exchange exchange, const void* in, void* out, bool orders_memory, const Site& site) {
  if (lanes != 0xffffffffu) fail("a warp collective for some of the lanes", site);
  char* token;
  {
    const Quiet quiet;
    token = &tokens[2 + current / kWarpSize * 2 + warps[current / kWarpSize].collected % 2];
  }
  if (orders_memory) release(token);
  {
    const Quiet quiet;
    Thread& thread = wait(State::kAtCollective, exchange, site);
    thread.in = in;
    thread.out = out;
    Warp& warp = warps[current / kWarpSize];
    if (++warp.waiting == kWarpSize) {
      const int first = current / kWarpSize * kWarpSize;
      require_same_place(first, kWarpSize);
      warp.waiting = 0;
      ++warp.collected;
      const void* inputs[kWarpSize];
      void* outputs[kWarpSize];
      for (int lane = 0; lane < kWarpSize; ++lane) {
        inputs[lane] = threads[first + lane].in;
        outputs[lane] = threads[first + lane].out;
        make_ready(first + lane);
      }
      if (exchange) exchange(inputs, outputs);
    }
    threads[current].fiber->change(main_fiber);
  }
  if (orders_memory) acquire(token);
}

cudaError_t run(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& body) {
  const uint64_t blocks = uint64_t{grid.x} * grid.y * grid.z, count = uint64_t{block.x} * block.y * block.z;
  if (blocks == 0) return cudaSuccess;
  if (count == 0 || count > kMostThreads || shared_bytes > kMostSharedBytes || grid.x > 0x7fffffffu || grid.y > 65535 ||
      grid.z > 65535)
    return cudaErrorInvalidConfiguration;
  if (count % kWarpSize) fail("a block is not a number of whole warps", Site::current());
  release(&launched);
  {
    const Quiet quiet;
    kernel = &body;
    gridDim = grid;
    blockDim = block;
    uint64_t begun = 0;
    for (const uint64_t at : order.blocks(blocks)) {
      blockIdx = {static_cast<unsigned>(at % grid.x), static_cast<unsigned>(at / grid.x % grid.y),
                  static_cast<unsigned>(at / grid.x / grid.y)};
      shared = Buffer(shared_bytes, 128);
      tokens = std::vector<char>(2 + 2 * count / kWarpSize);
      threads = std::vector<Thread>(count);
      warps = std::vector<Warp>(count / kWarpSize);
      for (uint64_t t = 0; t < count; ++t) threads[t].fiber = &fiber((t + begun) % count);
      begin_asynchronous(shared, static_cast<int>(count));
      run_block();
      end_asynchronous();
      ++begun;
    }
  }
  acquire(&finished);
  return cudaSuccess;
}

unsigned char* shared_memory() { return shared.data(); }

void check_shared(const void* pointer, size_t bytes, const Site& site) {
  const auto* at = static_cast<const unsigned char*>(pointer);
  if (at < shared.data() || at + bytes > shared.data() + shared.size()) fail("an address outside shared memory", site);
  if (reinterpret_cast<uintptr_t>(at) % 16) fail("an address in shared memory that is not a multiple of 16", site);
}

void copy_later(void* to, const void* from, bool valid, const Site& site) {
  check_shared(to, 16, site);
  if (reinterpret_cast<uintptr_t>(from) % 16 && valid) fail("a copy from an address that is no multiple of 16", site);
  unsigned char bytes[16];
  if (valid) std::memcpy(bytes, from, sizeof(bytes));  // so that an address out of bounds shows here
  std::memset(to, 0xff, sizeof(bytes));
  const Quiet quiet;
  threads[current].open.push_back({to, from, valid});
}

void close_copies() {
  const Quiet quiet;
  Thread& thread = threads[current];
  thread.groups.push_back(std::move(thread.open));
  thread.open.clear();
}

void finish_copies(size_t groups_left) {
  Copies due;
  {
    const Quiet quiet;
    auto& groups = threads[current].groups;
    while (groups.size() > groups_left) {
      due.insert(due.end(), groups.front().begin(), groups.front().end());
      groups.erase(groups.begin());
    }
  }
  for (const Copy& copy : due) {
    if (copy.valid) {
      std::memcpy(copy.shared, copy.global, 16);
    } else {
      std::memset(copy.shared, 0, 16);
    }
  }
}

// Half `upper` of a register, as a number.
template <class T>
double half_of(uint32_t packed, int upper) {
  return as_float(std::bit_cast<T>(static_cast<uint16_t>(packed >> (16 * upper))));
}

// Lane 4 g + t holds, in pairs of columns, rows g and g + 8 of a and d; of b, in pairs of rows, column g.
template <class T>
void multiply_all(const MmaIn* const* in, MmaOut* const* out) {
  double a[16][16], b[16][8];
  for (int lane = 0; lane < kWarpSize; ++lane) {
    for (int i = 0; i < 8; ++i) {
      const int pair = i / 2, column = lane % 4 * 2 + i % 2 + 8 * (pair / 2);
      a[lane / 4 + 8 * (pair % 2)][column] = half_of<T>(in[lane]->a[pair], i % 2);
      if (pair < 2) b[lane % 4 * 2 + i % 2 + 8 * pair][lane / 4] = half_of<T>(in[lane]->b[pair], i % 2);
    }
  }
  for (int lane = 0; lane < kWarpSize; ++lane) {
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4 + 8 * (i / 2), column = lane % 4 * 2 + i % 2;
      double sum = in[lane]->d[i];
      for (int k = 0; k < 16; ++k) sum += a[row][k] * b[k][column];
      out[lane]->d[i] = static_cast<float>(sum);
    }
  }
}

template void multiply_all<__half>(const MmaIn* const*, MmaOut* const*);
template void multiply_all<__nv_bfloat16>(const MmaIn* const*, MmaOut* const*);

}  // namespace mixfast::emulator
