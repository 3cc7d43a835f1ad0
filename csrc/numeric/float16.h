// fp16 and bf16 as bit patterns: conversions to and from fp32, round to nearest even.
// Every function is `static`, so that no translation unit can lend another its instruction set.
#pragma once

#include <cstdint>
#include <cstring>

#include "host_device.h"

#define LOWBIT_FN static LOWBIT_HOST_DEVICE

namespace lowbit {

LOWBIT_FN uint32_t float_bits(float x) {
  uint32_t u;
  memcpy(&u, &x, 4);
  return u;
}

LOWBIT_FN float bits_float(uint32_t u) {
  float x;
  memcpy(&x, &u, 4);
  return x;
}

LOWBIT_FN float bf16_to_float(uint16_t h) { return bits_float(uint32_t(h) << 16); }

LOWBIT_FN uint16_t float_to_bf16(float x) {
  const uint32_t u = float_bits(x);
  if ((u & 0x7fffffffu) > 0x7f800000u) return 0x7fc0;  // NaN
  return uint16_t((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}

LOWBIT_FN float fp16_to_float(uint16_t h) {
  const uint32_t sign = uint32_t(h & 0x8000u) << 16, exp = (h >> 10) & 31u, man = h & 0x3ffu;
  if (exp == 31) return bits_float(sign | 0x7f800000u | (man << 13));
  if (exp) return bits_float(sign | ((exp + 112) << 23) | (man << 13));
  const float tiny = float(man) * 5.9604644775390625e-8f;  // man * 2^-24, exact
  return bits_float(sign | float_bits(tiny));
}

LOWBIT_FN uint16_t float_to_fp16(float x) {
  const uint32_t u = float_bits(x), a = u & 0x7fffffffu;
  const uint16_t sign = uint16_t((u >> 16) & 0x8000u);
  if (a > 0x7f800000u) return sign | 0x7e00;
  if (a >= 0x477ff000u) return sign | 0x7c00;  // 65520 and up round to infinity
  if (a < 0x38800000u)  // subnormal: adding 0.5 aligns the unit in the last place to 2^-24
    return sign | uint16_t(float_bits(bits_float(a) + 0.5f) - 0x3f000000u);
  return sign | uint16_t((a - 0x38000000u + 0xfffu + ((a >> 13) & 1u)) >> 13);
}

}  // namespace lowbit
