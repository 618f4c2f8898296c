// SPDX-License-Identifier: MIT
// The functions of csrc/common/ptx.cuh, by the fragment layouts that the PTX ISA documents. Part of cuda_emulator.h.
#pragma once

namespace mixfast::gpu {

template <class T>
struct Tag {};

}  // namespace mixfast::gpu

namespace mixfast::emulator {

inline float as_float(__half value) { return __half2float(value); }
inline float as_float(__nv_bfloat16 value) { return __bfloat162float(value); }

struct MmaIn {
  float d[4];
  uint32_t a[4], b[2];
};
struct MmaOut {
  float d[4];
};

template <class T>
void multiply_all(const MmaIn* const* in, MmaOut* const* out);

struct Row {
  uint16_t values[8];
};
struct Registers {
  uint32_t values[4];
};

inline uint32_t packed(uint16_t low, uint16_t high) { return low | static_cast<uint32_t>(high) << 16; }

inline void load_matrices(const Row* const* rows, Registers* const* out) {
  for (int lane = 0; lane < kWarpSize; ++lane) {
    for (int matrix = 0; matrix < 4; ++matrix) {
      const uint16_t* row = rows[8 * matrix + lane / 4]->values;
      out[lane]->values[matrix] = packed(row[lane % 4 * 2], row[lane % 4 * 2 + 1]);
    }
  }
}

inline void load_transposed(const Row* const* rows, Registers* const* out) {
  for (int lane = 0; lane < kWarpSize; ++lane) {
    for (int matrix = 0; matrix < 4; ++matrix) {
      const int first = 8 * matrix + lane % 4 * 2, column = lane / 4;
      out[lane]->values[matrix] = packed(rows[first]->values[column], rows[first + 1]->values[column]);
    }
  }
}

inline Row row_at(const void* shared, const Site& site) {
  check_shared(shared, sizeof(Row), site);
  Row row;
  std::memcpy(&row, shared, sizeof(Row));
  return row;
}

}  // namespace mixfast::emulator

namespace mixfast::gpu {

template <class T>
void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Tag<T>,
                  const std::source_location site = std::source_location::current()) {
  const emulator::MmaIn in{{d[0], d[1], d[2], d[3]}, {a[0], a[1], a[2], a[3]}, {b[0], b[1]}};
  const auto out = emulator::collect<emulator::MmaIn, emulator::MmaOut, emulator::multiply_all<T>>(in, site);
  for (int i = 0; i < 4; ++i) d[i] = out.d[i];
}

inline void ldmatrix_x4(uint32_t (&r)[4], const void* shared,
                        const std::source_location site = std::source_location::current()) {
  const auto out = emulator::collect<emulator::Row, emulator::Registers, emulator::load_matrices>(
      emulator::row_at(shared, site), site);
  for (int i = 0; i < 4; ++i) r[i] = out.values[i];
}

inline void ldmatrix_x4_trans(uint32_t (&r)[4], const void* shared,
                              const std::source_location site = std::source_location::current()) {
  const auto out = emulator::collect<emulator::Row, emulator::Registers, emulator::load_transposed>(
      emulator::row_at(shared, site), site);
  for (int i = 0; i < 4; ++i) r[i] = out.values[i];
}

inline void cp_async_16(void* shared, const void* global, bool valid,
                        const std::source_location site = std::source_location::current()) {
  emulator::copy_later(shared, global, valid, site);
}

inline void cp_async_commit() { emulator::close_copies(); }

template <int N>
void cp_async_wait() {
  emulator::finish_copies(N);
}

template <class T>
void store_16(void* global, const T& value, const std::source_location site = std::source_location::current()) {
  static_assert(sizeof(T) == 16);
  if (reinterpret_cast<uintptr_t>(global) % 16 != 0) emulator::fail("a misaligned address of 16 bytes", site);
  std::memcpy(global, &value, 16);
}

inline float exp2_approx(float x) {
  const float y = std::exp2(x);
  return y < 0x1p-126f ? 0.0f : y;
}

}  // namespace mixfast::gpu
