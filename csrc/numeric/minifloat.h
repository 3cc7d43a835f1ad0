// Small floats without infinity or NaN: sign, exponent, mantissa, subnormals (OCP Microscaling Formats v1.0,
// section 5.3; e1m2 and e3m0 are LLM-FP4's, arXiv 2310.16836). Encoding rounds to nearest and saturates.
//
// Codes are the bits themselves, sign on top. Everything is plain fp32 arithmetic that no rounding touches
// but the one meant, so scalar code, vectors and CUDA give the same codes.
#pragma once

#include <cstdint>

#include "float16.h"

// Members of a class cannot be `static` as the free functions of numeric/ are; inlined always, they too stay
// in the translation unit, and so in the instruction set, that uses them.
#if defined(__CUDACC__)
#define LOWBIT_MEMBER LOWBIT_HOST_DEVICE
#else
#define LOWBIT_MEMBER __attribute__((always_inline)) inline
#endif

namespace lowbit {

enum class Ties { kEven, kAway };

template <int kExponentBits, int kMantissaBits, int kBias>
struct Minifloat {
  static constexpr int kE = kExponentBits, kM = kMantissaBits, kBits = 1 + kE + kM, kExponentBias = kBias;
  static constexpr int kSignBit = 1 << (kE + kM), kCodes = 1 << kBits;
  // value = (kInt * value) / kInt with an integer numerator: 2^-kLowest is the smallest step
  static constexpr int kLowest = kBias - 1 + kM, kIntScale = 1 << kLowest;

  // Magnitude of a code in steps of 2^-kLowest.
  static LOWBIT_MEMBER constexpr int steps(int code) {
    const int e = (code >> kM) & ((1 << kE) - 1), m = code & ((1 << kM) - 1);
    return e ? ((1 << kM) + m) << (e - 1) : kM ? m : 0;
  }
  // The code's value times kIntScale.
  static LOWBIT_MEMBER constexpr int to_int(int code) { return code & kSignBit ? -steps(code) : steps(code); }
  static constexpr int kMaxSteps = (((2 << kM) - 1) << ((1 << kE) - 2));
  static constexpr float kMax = float(kMaxSteps) / float(kIntScale);

  static LOWBIT_MEMBER float decode(int code) {
    const float a = float(steps(code)) / float(kIntScale);
    return bits_float(float_bits(a) | (code & kSignBit ? 0x80000000u : 0u));
  }

  // The nearest code; ties to the even significand, or away from zero. NaN gives +0: the format has none.
  template <Ties kTies = Ties::kEven>
  static LOWBIT_MEMBER uint8_t encode(float x) {
    const uint32_t u = float_bits(x), top = float_bits(kMax), bits = u & 0x7fffffffu;
    const uint32_t a = bits < top ? bits : bits > 0x7f800000u ? 0 : top;
    // the binade, not below that of the subnormals; within it the steps are 2^(binade - kM)
    constexpr uint32_t kFirst = 127 - kBias + 1;
    const uint32_t field = a >> 23, binade = field > kFirst ? field : kFirst;
    const float q = bits_float(a) * bits_float((254u + kM - binade) << 23);  // exact: 0 .. 2^(kM + 1)
    const float below = float(int(q));  // q + 0.5 could round up to the next integer
    const float n = kTies == Ties::kEven ? (q + 8388608.0f) - 8388608.0f : below + float(q - below >= 0.5f);
    const int code = int(n) + int((binade - kFirst) << kM);  // a carry moves to the next binade by itself
    return uint8_t(code | (bits > 0x7f800000u ? 0 : int(u >> 31) * kSignBit));
  }
};

using E3M2 = Minifloat<3, 2, 3>;
using E2M3 = Minifloat<2, 3, 1>;
using E2M1 = Minifloat<2, 1, 1>;
using E1M2 = Minifloat<1, 2, 1>;
using E3M0 = Minifloat<3, 0, 3>;

static_assert(E3M2::kMax == 28.0f && E2M3::kMax == 7.5f && E2M1::kMax == 6.0f && E1M2::kMax == 1.75f &&
              E3M0::kMax == 16.0f);
static_assert(E2M1::kIntScale == 2 && E1M2::kIntScale == 4 && E3M0::kIntScale == 4);
static_assert(E3M0::steps(0) == 0 && E3M0::steps(1) == 1 && E3M0::steps(7) == 64);

// The scale of an OCP block: 2^(code - 127); 255 is NaN.
namespace e8m0 {
constexpr int kBias = 127, kNaN = 255;

LOWBIT_FN float decode(uint8_t code) {
  return bits_float(code == kNaN ? 0x7fc00000u : code ? uint32_t(code) << 23 : 0x00400000u);
}
// The nearest power of two to x > 0, ties (1.5 times one) upwards; kNaN for everything else.
LOWBIT_FN uint8_t encode(float x) {
  const uint32_t u = float_bits(x);
  if (u == 0 || u >= 0x7f800000u) return kNaN;   // zero, negative, infinite, NaN
  if (u < 0x00800000u) return u >= 0x00600000u;  // 2^-127 is an fp32 subnormal
  const uint32_t code = (u + 0x400000u) >> 23;
  return uint8_t(code < 254 ? code : 254);
}
}  // namespace e8m0

}  // namespace lowbit
