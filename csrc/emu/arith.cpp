// Register arithmetic. Compiled with -ffp-contract=off.
#include <cfloat>
#include <cmath>
#include <cstring>

#include "../numeric/float16.h"
#include "machine.h"

namespace lowbit::emu {

uint32_t prmt(uint32_t a, uint32_t b, uint32_t selector) {
  const uint64_t pool = uint64_t(b) << 32 | a;
  uint32_t d = 0;
  for (int n = 0; n < 4; ++n) {
    const uint32_t s = selector >> (4 * n) & 15;
    uint32_t byte = uint32_t(pool >> (8 * (s & 7))) & 255;
    if (s & 8) byte = byte & 128 ? 255 : 0;
    d |= byte << (8 * n);
  }
  return d;
}

uint32_t lop3(uint32_t a, uint32_t b, uint32_t c, int lut) {
  uint32_t d = 0;
  for (int i = 0; i < 8; ++i)
    if (lut >> i & 1) d |= (i & 4 ? a : ~a) & (i & 2 ? b : ~b) & (i & 1 ? c : ~c);
  return d;
}

int32_t dp4a(uint32_t a, uint32_t b, int32_t c) {
  uint32_t d = uint32_t(c);
  for (int i = 0; i < 4; ++i) d += uint32_t(int32_t(int8_t(a >> (8 * i))) * int32_t(int8_t(b >> (8 * i))));
  return int32_t(d);
}

uint32_t cvt_pack_sat(int32_t a, int32_t b, uint32_t c, int bits) {
  const int32_t high = (1 << (bits - 1)) - 1, low = -high - 1;
  const uint32_t mask = (1u << bits) - 1;
  auto saturate = [&](int32_t x) { return uint32_t(x < low ? low : x > high ? high : x) & mask; };
  return c << (2 * bits) | saturate(a) << bits | saturate(b);
}

float sqrt_rn(float a) { return std::sqrt(a); }
float fma_rn(float a, float b, float c) { return std::fma(a, b, c); }
// max.f32: the operand that is a number, and -0 below +0. (glibc's fmax passes a signalling NaN on.)
float max_f32(float a, float b) {
  if (std::isnan(a)) return std::isnan(b) ? NAN : b;
  if (std::isnan(b) || a > b) return a;
  return a == b && std::signbit(b) ? a : b;
}
float min_f32(float a, float b) {
  if (std::isnan(a)) return std::isnan(b) ? NAN : b;
  if (std::isnan(b) || a < b) return a;
  return a == b && !std::signbit(b) ? a : b;
}
float rint_f32(float a) { return std::nearbyint(a); }

// .ftz: a subnormal argument or result is zero.
float ex2(float a) {
  const float y = std::exp2(a);
  return y < FLT_MIN ? 0.0f : y;
}

namespace {

// To fp32 by rounding to odd: a second rounding, to fp16 or bf16, then gives what one rounding would.
float round_odd(double a) {
  float f = float(a);
  if (std::isnan(a) || double(f) == a) return f;
  if (std::abs(double(f)) > std::abs(a)) f = std::nextafter(f, 0.f);
  uint32_t bits;
  memcpy(&bits, &f, 4);
  bits |= 1;
  memcpy(&f, &bits, 4);
  return f;
}

template <class F>
uint32_t each_half(F f) {
  return uint32_t(f(0)) | uint32_t(f(16)) << 16;
}

// a + b in fp64 by rounding to odd: the error of the rounded sum is exact (Knuth's TwoSum).
double sum_odd(double a, double b) {
  const double sum = a + b, second = sum - a, error = (a - (sum - second)) + (b - second);
  uint64_t bits;
  memcpy(&bits, &sum, 8);
  const bool keep = !std::isfinite(sum) || error == 0 || bits & 1;
  return keep ? sum : std::nextafter(sum, error > 0 ? HUGE_VAL : -HUGE_VAL);
}

}  // namespace

uint32_t fma_f16x2(uint32_t a, uint32_t b, uint32_t c) {
  return each_half([&](int s) {
    const double x = fp16_to_float(uint16_t(a >> s)), y = fp16_to_float(uint16_t(b >> s));
    return float_to_fp16(round_odd(sum_odd(x * y, fp16_to_float(uint16_t(c >> s)))));  // the product is exact
  });
}
uint32_t fma_bf16x2(uint32_t a, uint32_t b, uint32_t c) {
  return each_half([&](int s) {
    const double x = bf16_to_float(uint16_t(a >> s)), y = bf16_to_float(uint16_t(b >> s));
    return float_to_bf16(round_odd(sum_odd(x * y, bf16_to_float(uint16_t(c >> s)))));  // the product is exact
  });
}

float cvt_rn_f32_s32(int32_t a) {
  check_poisoned_value(&a, 4, Instr::kWgmma);
  return float(a);
}

int32_t cvt_rni_s32_f32(float a) {
  if (std::isnan(a)) return 0;
  const float r = std::nearbyint(a);
  if (r >= 2147483648.0f) return INT32_MAX;
  if (r < -2147483648.0f) return INT32_MIN;
  return int32_t(r);
}

}  // namespace lowbit::emu
