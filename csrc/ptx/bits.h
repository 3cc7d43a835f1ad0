// Register arithmetic: byte moves, float operations that round once, conversions. Per thread, no memory.
// Not volatile: the compiler may schedule, merge and drop them.
#pragma once

#include "../numeric/float16.h"
#include "common.h"

namespace lowbit::ptx {

// prmt.b32, default mode (PTX 9.7.8.7): byte n of the result is byte (selector nibble n) of {b, a}; bit 3 of
// the nibble replicates that byte's sign. CUDA's __byte_perm drops bit 3, so this is inline PTX.
LOWBIT_DEVICE uint32_t prmt(uint32_t a, uint32_t b, uint32_t selector) {
#if !defined(LOWBIT_EMULATE)
  uint32_t d;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(selector));
  return d;
#else
  return emu::prmt(a, b, selector);
#endif
}

// lop3.b32 (9.7.8.6): kLut = F(0xF0, 0xCC, 0xAA) for F(a, b, c): (a & b) | c is 0xEA, (a & b) ^ c is 0x6A, a
// ^ b ^ c is 0x96.
template <int kLut>
LOWBIT_DEVICE uint32_t lop3(uint32_t a, uint32_t b, uint32_t c) {
#if !defined(LOWBIT_EMULATE)
  uint32_t d;
  asm("lop3.b32 %0, %1, %2, %3, %4;" : "=r"(d) : "r"(a), "r"(b), "r"(c), "n"(kLut));
  return d;
#else
  return emu::lop3(a, b, c, kLut);
#endif
}

// dp4a.s32.s32 (9.7.1.23): c + four products of signed bytes.
LOWBIT_DEVICE int32_t dp4a_s32(uint32_t a, uint32_t b, int32_t c) {
#if !defined(LOWBIT_EMULATE)
  int32_t d;
  asm("dp4a.s32.s32 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
  return d;
#else
  return emu::dp4a(a, b, c);
#endif
}

// cvt.pack.sat.s8.s32.b32 (9.7.9.22): (c << 16) | (sat8(a) << 8) | sat8(b). Four values: pack(v1, v0,
// pack(v3, v2, 0)).
LOWBIT_DEVICE uint32_t cvt_pack_sat_s8(int32_t a, int32_t b, uint32_t c) {
#if !defined(LOWBIT_EMULATE)
  uint32_t d;
  asm("cvt.pack.sat.s8.s32.b32 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
  return d;
#else
  return emu::cvt_pack_sat(a, b, c, 8);
#endif
}

// cvt.pack.sat.s4.s32.b32: (c << 8) | (sat4(a) << 4) | sat4(b).
LOWBIT_DEVICE uint32_t cvt_pack_sat_s4(int32_t a, int32_t b, uint32_t c) {
#if !defined(LOWBIT_EMULATE)
  uint32_t d;
  asm("cvt.pack.sat.s4.s32.b32 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
  return d;
#else
  return emu::cvt_pack_sat(a, b, c, 4);
#endif
}

// Float operations with one rounding each, never contracted to fma: the numeric contract (DESIGN 4) counts
// roundings.
#if !defined(LOWBIT_EMULATE)
LOWBIT_DEVICE float mul_rn(float a, float b) { return __fmul_rn(a, b); }
LOWBIT_DEVICE float add_rn(float a, float b) { return __fadd_rn(a, b); }
LOWBIT_DEVICE float sub_rn(float a, float b) { return __fsub_rn(a, b); }
LOWBIT_DEVICE float div_rn(float a, float b) { return __fdiv_rn(a, b); }
LOWBIT_DEVICE float rcp_rn(float a) { return __frcp_rn(a); }
LOWBIT_DEVICE float sqrt_rn(float a) { return __fsqrt_rn(a); }
LOWBIT_DEVICE float fma_rn(float a, float b, float c) { return __fmaf_rn(a, b, c); }
LOWBIT_DEVICE float max_f32(float a, float b) { return fmaxf(a, b); }
LOWBIT_DEVICE float min_f32(float a, float b) { return fminf(a, b); }
LOWBIT_DEVICE float abs_f32(float a) { return fabsf(a); }
LOWBIT_DEVICE float cvt_rn_f32_s32(int32_t a) { return __int2float_rn(a); }
LOWBIT_DEVICE int32_t cvt_rni_s32_f32(float a) { return __float2int_rn(a); }
#else
// The emulator is compiled with -ffp-contract=off.
LOWBIT_DEVICE float mul_rn(float a, float b) { return a * b; }
LOWBIT_DEVICE float add_rn(float a, float b) { return a + b; }
LOWBIT_DEVICE float sub_rn(float a, float b) { return a - b; }
LOWBIT_DEVICE float div_rn(float a, float b) { return a / b; }
LOWBIT_DEVICE float rcp_rn(float a) { return 1.f / a; }
LOWBIT_DEVICE float sqrt_rn(float a) { return emu::sqrt_rn(a); }
LOWBIT_DEVICE float fma_rn(float a, float b, float c) { return emu::fma_rn(a, b, c); }
LOWBIT_DEVICE float max_f32(float a, float b) { return emu::max_f32(a, b); }
LOWBIT_DEVICE float min_f32(float a, float b) { return emu::min_f32(a, b); }
LOWBIT_DEVICE float abs_f32(float a) { return bit_cast<float>(bit_cast<uint32_t>(a) & 0x7fffffffu); }
LOWBIT_DEVICE float cvt_rn_f32_s32(int32_t a) { return emu::cvt_rn_f32_s32(a); }
LOWBIT_DEVICE int32_t cvt_rni_s32_f32(float a) { return emu::cvt_rni_s32_f32(a); }
#endif
// cvt.rn.f32.s32 and cvt.rni.s32.f32 (9.7.9.21): rni saturates, NaN gives 0. max.f32 and min.f32 return the
// operand that is a number.

// cvt.rni.f32.f32 (9.7.9.21): round to an integral float, ties to even.
LOWBIT_DEVICE float rint_f32(float a) {
#if !defined(LOWBIT_EMULATE)
  float d;
  asm("cvt.rni.f32.f32 %0, %1;" : "=f"(d) : "f"(a));
  return d;
#else
  return emu::rint_f32(a);
#endif
}

// ex2.approx.ftz.f32 (9.7.3.21), 2 ulp. The emulator is exact: never compare bits.
LOWBIT_DEVICE float ex2_approx(float a) {
#if !defined(LOWBIT_EMULATE)
  float d;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(d) : "f"(a));
  return d;
#else
  return emu::ex2(a);
#endif
}

// cvt.rn.f16.f32 and cvt.rn.bf16.f32, nearest even (9.7.9.21). NaN: the payload differs between GPU and
// emulator.
LOWBIT_DEVICE uint16_t cvt_rn_f16_f32(float a) {
#if !defined(LOWBIT_EMULATE)
  uint16_t d;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(d) : "f"(a));
  return d;
#else
  return float_to_fp16(a);
#endif
}

LOWBIT_DEVICE uint16_t cvt_rn_bf16_f32(float a) {
#if !defined(LOWBIT_EMULATE)
  uint16_t d;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(d) : "f"(a));
  return d;
#else
  return float_to_bf16(a);
#endif
}

// Two at once: `low` lands in bits 0..15.
LOWBIT_DEVICE uint32_t cvt_rn_f16x2_f32(float low, float high) {
#if !defined(LOWBIT_EMULATE)
  uint32_t d;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(high), "f"(low));
  return d;
#else
  return uint32_t(float_to_fp16(low)) | uint32_t(float_to_fp16(high)) << 16;
#endif
}

LOWBIT_DEVICE uint32_t cvt_rn_bf16x2_f32(float low, float high) {
#if !defined(LOWBIT_EMULATE)
  uint32_t d;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(high), "f"(low));
  return d;
#else
  return uint32_t(float_to_bf16(low)) | uint32_t(float_to_bf16(high)) << 16;
#endif
}

LOWBIT_DEVICE float cvt_f32_f16(uint16_t a) {
#if !defined(LOWBIT_EMULATE)
  float d;
  asm("cvt.f32.f16 %0, %1;" : "=f"(d) : "h"(a));
  return d;
#else
  return fp16_to_float(a);
#endif
}

// fma.rn.f16x2 and fma.rn.bf16x2 (9.7.4.4): a * b + c in both halves, one rounding, subnormals kept. sm_80
// has no other arithmetic on bf16 pairs: a product is a fma with -0.
LOWBIT_DEVICE uint32_t fma_rn_f16x2(uint32_t a, uint32_t b, uint32_t c) {
#if !defined(LOWBIT_EMULATE)
  uint32_t d;
  asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
  return d;
#else
  return emu::fma_f16x2(a, b, c);
#endif
}

LOWBIT_DEVICE uint32_t fma_rn_bf16x2(uint32_t a, uint32_t b, uint32_t c) {
#if !defined(LOWBIT_EMULATE)
  uint32_t d;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
  return d;
#else
  return emu::fma_bf16x2(a, b, c);
#endif
}

// No instruction of its own below sm_90: bf16 is the upper half of a float.
LOWBIT_DEVICE float cvt_f32_bf16(uint16_t a) { return bit_cast<float>(uint32_t(a) << 16); }

}  // namespace lowbit::ptx
