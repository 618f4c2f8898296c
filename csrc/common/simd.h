// SPDX-License-Identifier: MIT
// Vectors of the widest registers that the including file is compiled for, by the compilers' vector extension.
//
// Loads and stores convert from and to the 16-bit types; arithmetic is in float, or double for double.
// Everything has internal linkage: files compiled for different instruction sets must not share a copy.
#pragma once

#include <cstdint>

#if defined(__AVX512F__)
#include <immintrin.h>
#define MIXFAST_VECTOR_BYTES 64
#elif defined(__AVX2__)
#include <immintrin.h>
#define MIXFAST_VECTOR_BYTES 32
#else
#define MIXFAST_VECTOR_BYTES 16
#endif

#define MIXFAST_INLINE static inline __attribute__((always_inline))

namespace mixfast {
namespace {

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

// The type in which values of a stored type are computed.
template <class T>
struct Computed {
  using type = float;
};
template <>
struct Computed<double> {
  using type = double;
};
template <class T>
using computed_t = typename Computed<T>::type;

template <class T>
struct Vector;
template <>
struct Vector<float> {
  typedef float type __attribute__((vector_size(MIXFAST_VECTOR_BYTES)));
};
template <>
struct Vector<double> {
  typedef double type __attribute__((vector_size(MIXFAST_VECTOR_BYTES)));
};
template <class T>
using vector_t = typename Vector<T>::type;
template <class T>
constexpr int kLanes = MIXFAST_VECTOR_BYTES / static_cast<int>(sizeof(T));

constexpr int kFloats = kLanes<float>;
typedef uint8_t Bytes __attribute__((vector_size(kFloats)));
typedef uint16_t Shorts __attribute__((vector_size(2 * kFloats)));
typedef uint32_t Words __attribute__((vector_size(4 * kFloats)));
typedef int32_t Ints __attribute__((vector_size(4 * kFloats)));

template <class To, class From>
MIXFAST_INLINE To reinterpret(From from) {
  static_assert(sizeof(To) == sizeof(From), "sizes differ");
  To to;
  __builtin_memcpy(&to, &from, sizeof(To));
  return to;
}
template <class To>
MIXFAST_INLINE To load_bytes(const void* from) {
  To to;
  __builtin_memcpy(&to, from, sizeof(To));
  return to;
}

// Sixteen bits to 32 and back; 32 must not exceed 16. Spelt out where GCC makes long detours.
MIXFAST_INLINE Words widen_bits(Shorts bits) {
#if defined(__AVX512F__)
  return reinterpret<Words>(_mm512_cvtepu16_epi32(reinterpret<__m256i>(bits)));
#elif defined(__AVX2__)
  return reinterpret<Words>(_mm256_cvtepu16_epi32(reinterpret<__m128i>(bits)));
#else
  return __builtin_convertvector(bits, Words);
#endif
}
MIXFAST_INLINE Shorts narrow_bits(Words bits) {
#if defined(__AVX512F__)
  return reinterpret<Shorts>(_mm512_cvtepi32_epi16(reinterpret<__m512i>(bits)));
#elif defined(__AVX2__)
  const __m256i all = reinterpret<__m256i>(bits);
  return reinterpret<Shorts>(_mm_packus_epi32(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1)));
#else
  return __builtin_convertvector(bits, Shorts);
#endif
}

MIXFAST_INLINE Ints widen_bytes(Bytes bytes) {
#if defined(__AVX512F__)
  return reinterpret<Ints>(_mm512_cvtepu8_epi32(reinterpret<__m128i>(bytes)));
#elif defined(__AVX2__)
  return reinterpret<Ints>(_mm256_cvtepu8_epi32(_mm_cvtsi64_si128(reinterpret<long long>(bytes))));
#else
  return __builtin_convertvector(bytes, Ints);
#endif
}

// Half to float: exponent and mantissa move into place and are scaled by 2^(127 - 15); exact, subnormals included.
MIXFAST_INLINE vector_t<float> widen(Shorts halves, Half) {
#if defined(__AVX512F__)
  return reinterpret<vector_t<float>>(_mm512_cvtph_ps(reinterpret<__m256i>(halves)));
#elif defined(__AVX2__) && defined(__F16C__)
  return reinterpret<vector_t<float>>(_mm256_cvtph_ps(reinterpret<__m128i>(halves)));
#else
  const Words bits = widen_bits(halves);
  const Words magnitude = (bits & 0x7fffu) << 13;
  const vector_t<float> scale = vector_t<float>{} + 0x1p112f;
  Words value = reinterpret<Words>(reinterpret<vector_t<float>>(magnitude) * scale);
  value |= reinterpret<Words>(reinterpret<Ints>(magnitude) >= static_cast<int32_t>(0x0f800000)) & 0x7f800000u;
  return reinterpret<vector_t<float>>(value | ((bits & 0x8000u) << 16));
#endif
}
MIXFAST_INLINE vector_t<float> widen(Shorts bits, BFloat16) {
  return reinterpret<vector_t<float>>(widen_bits(bits) << 16);
}

// Float to the nearest half, ties to even. Normal halves: rebias the exponent and let the rounding carry into it;
// subnormal ones: adding 1/2 aligns the mantissa to 2^-24, and the addition rounds.
MIXFAST_INLINE Shorts narrow(vector_t<float> value, Half) {
#if defined(__AVX512F__)
  return reinterpret<Shorts>(_mm512_cvtps_ph(reinterpret<__m512>(value), _MM_FROUND_TO_NEAREST_INT));
#elif defined(__AVX2__) && defined(__F16C__)
  return reinterpret<Shorts>(_mm256_cvtps_ph(reinterpret<__m256>(value), _MM_FROUND_TO_NEAREST_INT));
#else
  const Words bits = reinterpret<Words>(value);
  const Words magnitude = bits & 0x7fffffffu;
  const Words normal = (magnitude + 0xc8000fffu + ((magnitude >> 13) & 1u)) >> 13;
  const vector_t<float> half = vector_t<float>{} + 0.5f;
  const Words subnormal = reinterpret<Words>(reinterpret<vector_t<float>>(magnitude) + half) - 0x3f000000u;
  const Ints size = reinterpret<Ints>(magnitude);
  Words result = size < 0x38800000 ? subnormal : normal;
  result = size >= 0x47800000 ? Words{} + 0x7c00u : result;
  result = size > 0x7f800000 ? Words{} + 0x7e00u : result;
  return narrow_bits(result | ((bits & 0x80000000u) >> 16));
#endif
}
MIXFAST_INLINE Shorts narrow(vector_t<float> value, BFloat16) {
#if defined(__AVX512BF16__)
  return reinterpret<Shorts>(_mm512_cvtneps_pbh(reinterpret<__m512>(value)));  // subnormals become zero
#else
  const Words bits = reinterpret<Words>(value);
  const Words rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  return narrow_bits(value == value ? rounded : Words{} + 0x7fc0u);
#endif
}

MIXFAST_INLINE vector_t<float> load(const float* from) { return load_bytes<vector_t<float>>(from); }
MIXFAST_INLINE vector_t<double> load(const double* from) { return load_bytes<vector_t<double>>(from); }
template <class T>
MIXFAST_INLINE vector_t<float> load(const T* from) {
  return widen(load_bytes<Shorts>(from), T{});
}
MIXFAST_INLINE void store(float* to, vector_t<float> value) { __builtin_memcpy(to, &value, sizeof(value)); }
MIXFAST_INLINE void store(double* to, vector_t<double> value) { __builtin_memcpy(to, &value, sizeof(value)); }
template <class T>
MIXFAST_INLINE void store(T* to, vector_t<float> value) {
  const Shorts bits = narrow(value, T{});
  __builtin_memcpy(to, &bits, sizeof(bits));
}

// Loads and stores of the first `count` lanes; other lanes are loaded as zero and not stored.
template <class T>
MIXFAST_INLINE vector_t<computed_t<T>> load_first(const T* from, int64_t count) {
  T lanes[kLanes<computed_t<T>>] = {};
  for (int64_t l = 0; l < count; ++l) lanes[l] = from[l];
  return load(lanes);
}
template <class T>
MIXFAST_INLINE void store_first(T* to, vector_t<computed_t<T>> value, int64_t count) {
  T lanes[kLanes<computed_t<T>>];
  store(lanes, value);
  for (int64_t l = 0; l < count; ++l) to[l] = lanes[l];
}

// A vector with the same number in every lane. (Subtracting zero changes no number and compiles to nothing; adding zero
// would turn -0 into 0.)
template <class A>
MIXFAST_INLINE vector_t<A> fill(A value) {
  return value - vector_t<A>{};
}

// Lane l of shuffle_pair<D, HIGH>: from each block of 2D lanes the lower (or higher) D of a, then those of b.
constexpr int paired_lane(int lane, int distance, bool high, int lanes) {
  const int block = lane - lane % (2 * distance), offset = lane % (2 * distance);
  const int shift = high ? distance : 0;
  return offset < distance ? block + offset + shift : lanes + block + offset - distance + shift;
}
#if defined(__clang__)
#define MIXFAST_SHUFFLE(a, b, Index, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define MIXFAST_SHUFFLE(a, b, Index, ...) __builtin_shuffle(a, b, Index{__VA_ARGS__})
#endif
template <int... L>
struct Lanes {};
template <int N, int... L>
struct CountLanes : CountLanes<N - 1, N - 1, L...> {};
template <int... L>
struct CountLanes<0, L...> {
  using type = Lanes<L...>;
};
template <class A>
struct LaneIndex {
  typedef int32_t type __attribute__((vector_size(MIXFAST_VECTOR_BYTES)));
};
template <>
struct LaneIndex<double> {
  typedef int64_t type __attribute__((vector_size(MIXFAST_VECTOR_BYTES)));
};

// Adds neighbours at `D` lanes of a and of b: each block of 2D lanes becomes D sums of a, then D sums of b.
template <int D, class A, int... L>
MIXFAST_INLINE vector_t<A> add_pairs(vector_t<A> a, vector_t<A> b, Lanes<L...>) {
  return MIXFAST_SHUFFLE(a, b, typename LaneIndex<A>::type, paired_lane(L, D, false, sizeof...(L))...) +
         MIXFAST_SHUFFLE(a, b, typename LaneIndex<A>::type, paired_lane(L, D, true, sizeof...(L))...);
}
template <int D, class A>
MIXFAST_INLINE vector_t<A> add_pairs(vector_t<A> a, vector_t<A> b) {
  return add_pairs<D, A>(a, b, typename CountLanes<kLanes<A>>::type{});
}

}  // namespace
}  // namespace mixfast
