// Register arithmetic. Compiled with -ffp-contract=off.
#include <cfloat>
#include <cmath>

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
