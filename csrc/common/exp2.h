// SPDX-License-Identifier: MIT
// 2^x on vectors of the including file's widest registers.
#pragma once

#include <cstdint>

namespace mixfast {
namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

// Vectors of T; `Stored` is the same in memory, without alignment, and may alias T.
// Polynomials: 2^f = 1 + f c_0 + f^2 c_1 + ... on [-1/2, 1/2], least relative error (2.6e-9 and 1.8e-17), found by the
// exchange algorithm. kRound: adding it rounds to an integer, which then is in the low bits. Below kZero the result is
// zero: less than the rounding of any sum that has a term near one, and no subnormal numbers arise, which are slow.
// From kSparse on, neighbouring numbers are more than one apart; kEpsilon is their distance at one.
template <class T>
struct Wide;

template <>
struct Wide<float> {
  typedef float Vector __attribute__((vector_size(kVectorBytes)));
  typedef float Stored __attribute__((vector_size(kVectorBytes), aligned(4), may_alias));
  typedef int32_t Bits __attribute__((vector_size(kVectorBytes)));
  static constexpr int kMantissa = 23, kTerms = 6;
  static constexpr float kRound = 0x1.8p23f, kZero = -64.0f, kLowest = -0x1.fffffep127f;
  static constexpr float kSparse = 0x1p24f, kEpsilon = 0x1p-23f;
  static constexpr float kCoefficients[kTerms] = {0.69314721496788496344f,   0.24022652782876176793f,
                                                  0.055503105512069805781f,  0.0096176929761431872291f,
                                                  0.0013406643847480060174f, 0.00015594677015105410559f};
};

template <>
struct Wide<double> {
  typedef double Vector __attribute__((vector_size(kVectorBytes)));
  typedef double Stored __attribute__((vector_size(kVectorBytes), aligned(8), may_alias));
  typedef int64_t Bits __attribute__((vector_size(kVectorBytes)));
  static constexpr int kMantissa = 52, kTerms = 11;
  static constexpr double kRound = 0x1.8p52, kZero = -200.0, kLowest = -0x1.fffffffffffffp1023;
  static constexpr double kSparse = 0x1p53, kEpsilon = 0x1p-52;
  static constexpr double kCoefficients[kTerms] = {
      0.69314718055994569675,   0.24022650695910098006,    0.055504108664790394528,   0.0096181291076070026171,
      0.001333355815343996974,  0.00015403530441571850099, 0.00001525272738518977478, 1.3215442675455852182e-6,
      1.0180647660573069343e-7, 7.0725703945407994337e-9,  4.0780717860928704165e-10};
};

template <class T>
constexpr int kWidth = kVectorBytes / static_cast<int>(sizeof(T));

// Weights 2^(score scale - m) need an m for which the largest weight is near one. The rounded product of largest score
// and scale is such an m, except where neighbouring numbers are far apart: the fused multiply-add of the exponent does
// not round its product, so that the largest exponent may be far below zero. There m is one or two numbers lower, and
// exponents, which can then be positive for scores near the largest, are limited to one. NaN stays NaN.
template <class T>
static inline __attribute__((always_inline)) typename Wide<T>::Vector shift_of(typename Wide<T>::Vector largest,
                                                                               typename Wide<T>::Vector scale) {
  const typename Wide<T>::Vector product = largest * scale, size = product < 0 ? -product : product;
  return size < Wide<T>::kSparse ? product : product - size * Wide<T>::kEpsilon;
}
template <class T>
static inline __attribute__((always_inline)) typename Wide<T>::Vector exponent_of(typename Wide<T>::Vector score,
                                                                                  typename Wide<T>::Vector scale,
                                                                                  typename Wide<T>::Vector shift) {
  const typename Wide<T>::Vector exponent = score * scale - shift, one = typename Wide<T>::Vector{} + T(1);
  return exponent > one ? one : exponent;
}

// For x <= 1. NaN stays NaN, as the comparison with it is false.
template <class T>
static inline __attribute__((always_inline)) typename Wide<T>::Vector exp2_of(typename Wide<T>::Vector x) {
  using Vector = typename Wide<T>::Vector;
  using Bits = typename Wide<T>::Bits;
  const Vector shifted = x + Wide<T>::kRound;
  const Vector fraction = x - (shifted - Wide<T>::kRound);
  Vector power = Vector{} + Wide<T>::kCoefficients[Wide<T>::kTerms - 1];
#pragma GCC unroll 16
  for (int i = Wide<T>::kTerms - 2; i >= 0; --i) power = power * fraction + Wide<T>::kCoefficients[i];
  power = power * fraction + T(1);
  const Vector scaled = (Vector)((Bits)power + ((Bits)shifted << Wide<T>::kMantissa));
  return x < Vector{} + Wide<T>::kZero ? Vector{} : scaled;
}

}  // namespace
}  // namespace mixfast
