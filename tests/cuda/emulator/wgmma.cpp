// SPDX-License-Identifier: MIT
// wgmma (PTX ISA, "Asynchronous Warpgroup Level Matrix Instructions"), warp by warp: the 16 rows of a warp, of operands
// that its descriptors name. Registers as for mma.m16n8k16 (emulated_ptx.h), for each 8 columns.
#include <algorithm>
#include <deque>
#include <vector>

#include "emulated_hopper.h"
#include "sanitizers.h"

namespace mixfast::emulator {
namespace {

constexpr int kDepth = 16, kRows = 16;  // of a warp's part of one product

// The sums of a warp while products add to them: [lane][column / 8 * 4 + register].
struct Sums {
  std::vector<float*> lanes;
  int numbers;  // of a lane
  std::vector<float> values;
  int pending;  // products
};

struct Issued {
  std::vector<Product> lanes;
  std::vector<uint16_t> a, b;  // [16 rows][16], [16][columns], as they were
};

struct Fenced {
  const unsigned char* begin;
  std::vector<unsigned char> bytes;
};

struct Warp {
  std::vector<Issued> open;
  std::deque<std::vector<Issued>> groups;
  std::vector<Sums> sums;
  size_t issued;  // products so far
};

std::vector<Warp> warps;
std::vector<std::vector<Fenced>> fenced;                         // of each thread
std::vector<std::vector<std::pair<uint64_t, uint64_t>>> places;  // of the products of each warpgroup, in order

uint16_t number_at(uint32_t address, const Site& site) {
  uint16_t bits;
  std::memcpy(&bits, async_view(swizzled(address), 2, site), 2);
  return bits;
}

struct Place {
  uint32_t start, leading, stride;
  Place(uint64_t descriptor, const Site& site)
      : start((descriptor & 0x3fff) << 4),
        leading((descriptor >> 16 & 0x3fff) << 4),
        stride((descriptor >> 32 & 0x3fff) << 4) {
    if (descriptor >> 62 != 1 || (descriptor >> 49 & 7) != 0) fail("a descriptor of another layout", site);
    if (start >> 7 & 7) fail("a matrix whose swizzle does not begin at a multiple of 1024", site);
  }
};

// Where numbers are summed along rows: ((8, m), (T, 2k)) : ((8 T, SBO), (1, T)), here in bytes.
uint16_t along_rows(const Place& place, int row, int k, const Site& site) {
  return number_at(place.start + row % 8 * 128 + row / 8 * place.stride + k * 2, site);
}

// Where they are summed along columns: ((T, 8, m), (8, k)) : ((1, T, LBO), (8 T, SBO)).
uint16_t along_columns(const Place& place, int k, int column, const Site& site) {
  return number_at(place.start + column % 64 * 2 + column / 64 * place.leading + k % 8 * 128 + k / 8 * place.stride,
                   site);
}

void read_operands(const std::vector<Product>& lanes, int warp, std::vector<uint16_t>* a, std::vector<uint16_t>* b) {
  const Product& one = lanes[0];
  const int columns = one.columns * 8;
  a->assign(kRows * kDepth, 0);
  b->assign(kDepth * columns, 0);
  const Place b_place(one.b_place, one.site);
  for (int k = 0; k < kDepth; ++k) {
    for (int n = 0; n < columns; ++n)
      (*b)[k * columns + n] =
          one.a == nullptr ? along_rows(b_place, n, k, one.site) : along_columns(b_place, k, n, one.site);
  }
  if (one.a == nullptr) {
    const Place a_place(one.a_place, one.site);
    for (int row = 0; row < kRows; ++row) {
      for (int k = 0; k < kDepth; ++k)
        (*a)[row * kDepth + k] = along_rows(a_place, warp % 4 * kRows + row, k, one.site);
    }
    return;
  }
  for (int lane = 0; lane < kWarpSize; ++lane) {
    for (int i = 0; i < 8; ++i) {
      const int pair = i / 2, row = lane / 4 + 8 * (pair % 2), k = lane % 4 * 2 + i % 2 + 8 * (pair / 2);
      (*a)[row * kDepth + k] = static_cast<uint16_t>(lanes[lane].a[pair] >> (16 * (i % 2)));
    }
  }
}

bool as_fenced(int thread, const void* registers, size_t bytes) {
  const auto* at = static_cast<const unsigned char*>(registers);
  for (const Fenced& each : fenced[thread]) {
    if (at < each.begin || at + bytes > each.begin + each.bytes.size()) continue;
    return std::memcmp(at, each.bytes.data() + (at - each.begin), bytes) == 0;
  }
  return false;
}

bool all_ones(const float* numbers, int count) {
  const auto* bytes = reinterpret_cast<const unsigned char*>(numbers);
  return std::all_of(bytes, bytes + count * sizeof(float), [](unsigned char byte) { return byte == 0xff; });
}

// The sums that a product adds to, taken out of their registers, which become NaN.
Sums& sums_of(Warp& warp, const std::vector<Product>& lanes) {
  for (Sums& each : warp.sums) {
    if (each.lanes[0] == lanes[0].d && each.numbers == lanes[0].columns * 4) return each;
  }
  Sums taken = {{}, lanes[0].columns * 4, {}, 0};
  for (const Product& lane : lanes) {
    taken.lanes.push_back(lane.d);
    taken.values.insert(taken.values.end(), lane.d, lane.d + taken.numbers);
    std::memset(lane.d, 0xff, taken.numbers * sizeof(float));
  }
  warp.sums.push_back(taken);
  return warp.sums.back();
}

void multiply(const Issued& issued, Sums& sums) {
  const Product& one = issued.lanes[0];
  const int columns = one.columns * 8;
  std::vector<double> a(issued.a.size()), b(issued.b.size());
  std::transform(issued.a.begin(), issued.a.end(), a.begin(), one.number);
  std::transform(issued.b.begin(), issued.b.end(), b.begin(), one.number);
  for (int lane = 0; lane < kWarpSize; ++lane) {
    for (int i = 0; i < sums.numbers; ++i) {
      const int row = lane / 4 + i % 4 / 2 * 8, column = i / 4 * 8 + lane % 4 * 2 + i % 2;
      float& value = sums.values[lane * sums.numbers + i];
      double sum = one.add ? static_cast<double>(value) : 0;
      for (int k = 0; k < kDepth; ++k) sum += a[row * kDepth + k] * b[k * columns + column];
      value = static_cast<float>(sum);
    }
  }
}

void issue(const void* const (&in)[kWarpSize], void* const (&)[kWarpSize]) {
  const int number = current_thread() / kWarpSize;
  Warp& warp = warps[number];
  Issued issued;
  for (const void* lane : in) issued.lanes.push_back(*static_cast<const Product*>(lane));
  const Product& one = issued.lanes[0];
  auto& others = places[number / 4];
  const std::pair<uint64_t, uint64_t> place(one.a_place, one.b_place);
  // The matrices are those of the warpgroup; in registers, and in its rows of shared memory, each warp has its own.
  if (warp.issued == others.size()) others.push_back(place);
  if (others[warp.issued++] != place) fail("the warps of a warpgroup name different matrices", one.site);
  const bool running =
      std::any_of(warp.sums.begin(), warp.sums.end(), [&](const Sums& s) { return s.lanes[0] == one.d; });
  for (int lane = 0; lane < kWarpSize; ++lane) {
    const Product& each = issued.lanes[lane];
    const int thread = number * kWarpSize + lane;
    if (each.a_place != one.a_place || each.b_place != one.b_place) fail("lanes name different matrices", one.site);
    if (!running && !as_fenced(thread, each.d, each.columns * 4 * sizeof(float)))
      fail("sums that were touched after the last wgmma_fence", one.site);
    if (each.a != nullptr && !as_fenced(thread, each.a, 4 * sizeof(uint32_t)))
      fail("factors that were touched after the last wgmma_fence", one.site);
  }
  read_operands(issued.lanes, number, &issued.a, &issued.b);
  Sums& sums = sums_of(warp, issued.lanes);
  multiply(issued, sums);
  ++sums.pending;
  warp.open.push_back(std::move(issued));
}

void retire(Warp& warp, int number, const Issued& issued) {
  const Product& one = issued.lanes[0];
  std::vector<uint16_t> a, b;
  read_operands(issued.lanes, number, &a, &b);
  if (a != issued.a || b != issued.b) fail("operands of wgmma that changed before it was waited for", one.site);
  Sums& sums = sums_of(warp, issued.lanes);
  for (const float* lane : sums.lanes) {
    if (!all_ones(lane, sums.numbers)) fail("sums of wgmma that were written before it was waited for", one.site);
  }
  if (--sums.pending > 0) return;
  for (int lane = 0; lane < kWarpSize; ++lane)
    std::copy_n(sums.values.begin() + lane * sums.numbers, sums.numbers, sums.lanes[lane]);
  warp.sums.erase(warp.sums.begin() + (&sums - warp.sums.data()));
}

void close(const void* const (&)[kWarpSize], void* const (&)[kWarpSize]) {
  Warp& warp = warps[current_thread() / kWarpSize];
  warp.groups.push_back(std::move(warp.open));
  warp.open.clear();
}

void finish(const void* const (&in)[kWarpSize], void* const (&)[kWarpSize]) {
  const int number = current_thread() / kWarpSize;
  Warp& warp = warps[number];
  for (const size_t left = *static_cast<const size_t*>(in[0]); warp.groups.size() > left; warp.groups.pop_front()) {
    for (const Issued& issued : warp.groups.front()) retire(warp, number, issued);
  }
}

}  // namespace

void fence_registers(const void* registers, size_t bytes) {
  const Quiet quiet;
  const auto* begin = static_cast<const unsigned char*>(registers);
  auto& all = fenced[current_thread()];
  std::erase_if(
      all, [&](const Fenced& each) { return each.begin < begin + bytes && begin < each.begin + each.bytes.size(); });
  all.push_back({begin, {begin, begin + bytes}});
}

void start_product(const Product& product) { meet_warp(0xffffffffu, issue, &product, nullptr, false, product.site); }

void close_products(const Site& site) { meet_warp(0xffffffffu, close, nullptr, nullptr, false, site); }

void finish_products(size_t groups_left, const Site& site) {
  meet_warp(0xffffffffu, finish, &groups_left, nullptr, false, site);
}

void begin_products(int threads) {
  warps.assign(threads / kWarpSize, {});
  fenced.assign(threads, {});
  places.assign((threads + 127) / 128, {});
}

void end_products() {
  for (const Warp& warp : warps) {
    if (!warp.open.empty() || !warp.groups.empty()) fail("the block has ended before its products", Site::current());
  }
}

}  // namespace mixfast::emulator
