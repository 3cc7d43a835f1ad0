// How a tensor core adds products of halves: aligned to the largest exponent, cut, added exactly, cut to
// fp32.
//
// Measured by others and modelled to the bit (MMA-Sim, arXiv 2511.10909, T-FDPA): Ampere keeps 24 fraction
// bits, Hopper 25. An operand that is subnormal is not normalised first, so its upper zeros cost bits of the
// sum: that is why this is here. 24 bits for every card, so that what passes has some room on a Hopper.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace lowbit::emu {

struct Scaled {  // significand * 2^exponent
  int32_t significand;
  int16_t exponent;
  bool finite;
};

template <int kMantissa, int kExponent>
inline Scaled scaled_half(uint16_t bits) {
  constexpr int kField = (1 << kExponent) - 1, kBias = kField / 2;
  const int field = bits >> kMantissa & kField, low = bits & ((1 << kMantissa) - 1);
  const int significand = field ? low | 1 << kMantissa : low;
  return {bits >> 15 ? -significand : significand, int16_t((field ? field : 1) - kBias - kMantissa),
          field != kField};
}
inline Scaled scaled_fp16(uint16_t bits) { return scaled_half<10, 5>(bits); }
inline Scaled scaled_bf16(uint16_t bits) { return scaled_half<7, 8>(bits); }

inline float to_float(const Scaled& x, int mantissa) {
  if (x.finite) return std::ldexp(float(x.significand), x.exponent);
  const int low = std::abs(x.significand) & ((1 << mantissa) - 1);
  return low ? NAN : x.significand < 0 ? -INFINITY : INFINITY;
}

// c + the sum of a[k] * b[k], operands with so many mantissa bits.
template <int kMantissa, int kK>
inline float tensor_sum(const Scaled* a, const Scaled* b, float c) {
  constexpr int kFraction = 24, kPoint = 2 * kMantissa;  // bits behind the point of a product
  int32_t bits;
  std::memcpy(&bits, &c, 4);
  const int field = bits >> 23 & 0xff;
  bool finite = field != 0xff;
  const int64_t c_significand = (bits & 0x7fffff) | (field ? 1 << 23 : 0);
  const int c_exponent = (field ? field : 1) - 127;
  int most = c_significand ? c_exponent : -1000;
  for (int k = 0; k < kK; ++k) {
    finite &= a[k].finite && b[k].finite;
    const int e = a[k].exponent + b[k].exponent + kPoint;
    if (a[k].significand && b[k].significand && e > most) most = e;
  }
  if (!finite) {
    for (int k = 0; k < kK; ++k) c += to_float(a[k], kMantissa) * to_float(b[k], kMantissa);
    return c;
  }
  if (most == -1000) return c;
  const auto aligned = [&](int64_t magnitude, int exponent) {  // in units of 2^(most - kFraction)
    const int up = exponent - (most - kFraction);
    return up >= 0 ? magnitude << up : up <= -63 ? 0 : magnitude >> -up;
  };
  int64_t sum = aligned(c_significand, c_exponent - 23);
  if (bits < 0) sum = -sum;
  for (int k = 0; k < kK; ++k) {
    const int64_t product = int64_t(a[k].significand) * b[k].significand;
    const int64_t part = aligned(std::abs(product), a[k].exponent + b[k].exponent);
    sum += product < 0 ? -part : part;
  }
  int64_t magnitude = std::abs(sum);
  int exponent = most - kFraction;
  while (magnitude >> 24) magnitude >>= 1, ++exponent;  // rounded toward zero
  const float result = std::ldexp(float(magnitude), exponent);
  return sum < 0 ? -result : result;
}

}  // namespace lowbit::emu
