// SPDX-License-Identifier: MIT
// Barriers in shared memory, and the copies of boxes of a tensor that arrive at them (PTX ISA, "mbarrier" and
// "cp.async.bulk.tensor"; the driver's documentation of cuTensorMapEncodeTiled).
#include <cstdio>
#include <map>
#include <vector>

#include "emulated_hopper.h"
#include "sanitizers.h"

namespace mixfast::emulator {
namespace {

constexpr int kMostExpected = (1 << 20) - 1;  // bytes under way at a barrier
constexpr int kWidth = 128;                   // bytes of a row of a box
constexpr uint64_t kMark = 0x7ff4'6d62'6172'7269;

struct Barrier {
  int arrivals, pending;
  int64_t bytes;  // expected and not yet there
  int phase;
  bool shown;  // to the async proxy
  std::vector<int> waiting;
  char token;  // for ThreadSanitizer
};

struct Named {
  int threads = 0, phase = 0;
  std::vector<int> waiting;
  char tokens[2];
};

struct Encoded {
  const unsigned char* address;
  int64_t sizes[2], stride, box[2];  // columns and rows; bytes between rows
};
static_assert(sizeof(Encoded) <= sizeof(CUtensorMap));

struct Box {
  unsigned char* shared;
  Encoded map;
  int64_t column, row;
  Barrier* barrier;
  int64_t bytes() const { return map.box[1] * kWidth; }
};

const Buffer* shared;
Buffer seen;  // by the async proxy
std::map<const void*, Barrier> barriers;
Named named[16];
std::vector<Box> under_way;

Barrier& known(uint64_t* barrier, const Site& site) {
  const auto found = barriers.find(barrier);
  if (found == barriers.end()) fail("a barrier that has not begun", site);
  if (*barrier != kMark) fail("a barrier that something was written over", site);
  return found->second;
}

void end_phase_if_complete(Barrier& barrier) {
  if (barrier.pending > 0 || barrier.bytes > 0) return;
  barrier.pending = barrier.arrivals;
  ++barrier.phase;
  for (const int thread : barrier.waiting) resume(thread);
  barrier.waiting.clear();
}

// The bytes of a row of a box: what is outside the tensor is zero.
void read_row(const Box& box, int64_t r, unsigned char (&row)[kWidth]) {
  std::memset(row, 0, kWidth);
  const int64_t at = box.row + r, columns = std::min(box.map.box[0], box.map.sizes[0] - box.column);
  if (at < 0 || at >= box.map.sizes[1] || columns <= 0) return;
  std::memcpy(row, box.map.address + at * box.map.stride + box.column * 2, columns * 2);
}

// In both views of shared memory.
void write_box(const Box& box, bool arrived) {
  unsigned char row[kWidth];
  for (int64_t r = 0; r < box.map.box[1]; ++r) {
    if (arrived) read_row(box, r, row);
    for (int c = 0; c < kWidth; c += 16) {
      const uint32_t address = shared_address(box.shared) + static_cast<uint32_t>(r * kWidth + c);
      const uint32_t at = swizzled(address) - kSharedStart;
      for (unsigned char* view : {shared->data(), seen.data()}) {
        if (arrived) {
          std::memcpy(view + at, row + c, 16);
        } else {
          std::memset(view + at, 0xff, 16);
        }
      }
    }
  }
}

}  // namespace

uint32_t shared_address(const void* pointer) {
  return kSharedStart + static_cast<uint32_t>(static_cast<const unsigned char*>(pointer) - shared->data());
}

const unsigned char* async_view(uint32_t address, size_t bytes, const Site& site) {
  if (address < kSharedStart || address + bytes > kSharedStart + seen.size())
    fail("an operand outside shared memory", site);
  return seen.data() + (address - kSharedStart);
}

void begin_asynchronous(const Buffer& memory, int threads) {
  shared = &memory;
  seen = Buffer(memory.size(), 128);
  barriers.clear();
  for (Named& each : named) each = {};
  begin_products(threads);
}

void end_asynchronous() {
  if (!under_way.empty()) fail("the block has ended before its copies", Site::current());
  end_products();
}

CUresult encode_map(CUtensorMap* map, CUtensorMapDataType type, cuuint32_t rank, void* address, const cuuint64_t* sizes,
                    const cuuint64_t* strides, const cuuint32_t* box, const cuuint32_t* element_strides,
                    CUtensorMapInterleave interleave, CUtensorMapSwizzle swizzle, CUtensorMapL2promotion,
                    CUtensorMapFloatOOBfill fill) {
  const bool emulated = rank == 2 && box[0] * 2 == kWidth && element_strides[0] == 1 && element_strides[1] == 1 &&
                        (type == CU_TENSOR_MAP_DATA_TYPE_FLOAT16 || type == CU_TENSOR_MAP_DATA_TYPE_BFLOAT16) &&
                        interleave == CU_TENSOR_MAP_INTERLEAVE_NONE && swizzle == CU_TENSOR_MAP_SWIZZLE_128B &&
                        fill == CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE;
  const bool allowed = reinterpret_cast<uintptr_t>(map) % 64 == 0 && reinterpret_cast<uintptr_t>(address) % 16 == 0 &&
                       0 < sizes[0] && sizes[0] <= 1ull << 32 && 0 < sizes[1] && sizes[1] <= 1ull << 32 &&
                       strides[0] % 16 == 0 && sizes[0] * 2 <= strides[0] && strides[0] < 1ull << 40 && 0 < box[1] &&
                       box[1] <= 256;
  if (!emulated || !allowed) return CUDA_ERROR_INVALID_VALUE;
  const Encoded encoded = {static_cast<unsigned char*>(address),
                           {static_cast<int64_t>(sizes[0]), static_cast<int64_t>(sizes[1])},
                           static_cast<int64_t>(strides[0]),
                           {box[0], box[1]}};
  std::memcpy(static_cast<void*>(map), &encoded, sizeof(encoded));
  return CUDA_SUCCESS;
}

void begin_barrier(uint64_t* barrier, int arrivals, const Site& site) {
  if (shared_address(barrier) % 8) fail("a barrier at an address that is no multiple of 8", site);
  async_view(shared_address(barrier), sizeof(*barrier), site);
  *barrier = kMark;
  const Quiet quiet;
  barriers[barrier] = {arrivals, arrivals, 0, 0, false, {}, 0};
}

void arrive(uint64_t* at, int bytes, const Site& site) {
  const Quiet quiet;
  Barrier& barrier = known(at, site);
  release(&barrier.token);
  if (barrier.pending == 0) fail("more threads arrive at a barrier than it waits for", site);
  barrier.bytes += bytes;
  if (barrier.bytes > kMostExpected) fail("a barrier waits for more bytes than it can count", site);
  --barrier.pending;
  end_phase_if_complete(barrier);
}

void wait_phase(uint64_t* at, int parity, const Site& site) {
  char* token;
  {
    const Quiet quiet;
    Barrier& barrier = known(at, site);
    token = &barrier.token;
    while (barrier.phase % 2 == parity) {
      barrier.waiting.push_back(current_thread());
      await(site);
    }
  }
  acquire(token);
}

void meet_some(int number, int threads, const Site& site) {
  char* token;
  {
    const Quiet quiet;
    if (number < 1 || number > 15 || threads <= 0 || threads % kWarpSize) fail("no such barrier", site);
    token = &named[number].tokens[named[number].phase % 2];
  }
  release(token);
  {
    const Quiet quiet;
    Named& barrier = named[number];
    if (!barrier.waiting.empty() && barrier.threads != threads) fail("threads disagree on who meets", site);
    barrier.threads = threads;
    barrier.waiting.push_back(current_thread());
    if (static_cast<int>(barrier.waiting.size()) == threads) {
      ++barrier.phase;
      for (const int thread : barrier.waiting) resume(thread);
      barrier.waiting.clear();
    }
    await(site);
  }
  acquire(token);
}

void show_to_async() {
  const Quiet quiet;
  std::memcpy(seen.data(), shared->data(), seen.size());
  for (auto& [address, barrier] : barriers) barrier.shown = true;
}

void start_box(void* to, const CUtensorMap* map, int column, int row, uint64_t* at, const Site& site) {
  const Quiet quiet;
  Box box = {static_cast<unsigned char*>(to), {}, column, row, &known(at, site)};
  std::memcpy(&box.map, map, sizeof(box.map));
  if (!box.barrier->shown) fail("the copy engine does not see the barrier yet", site);
  if (shared_address(to) % 1024) fail("a copy to an address that is no multiple of 1024", site);
  async_view(shared_address(to), box.bytes(), site);
  unsigned char read[kWidth];
  for (int64_t r = 0; r < box.map.box[1]; ++r) read_row(box, r, read);  // so that bad memory shows here
  write_box(box, false);
  under_way.push_back(box);
}

bool finish_box() {
  if (under_way.empty()) return false;
  const int index = choose(static_cast<int>(under_way.size()));
  const Box box = under_way[index];
  under_way.erase(under_way.begin() + index);
  write_box(box, true);
  box.barrier->bytes -= box.bytes();
  end_phase_if_complete(*box.barrier);
  return true;
}

}  // namespace mixfast::emulator
