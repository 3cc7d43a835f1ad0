// mma.sync: D = A * B + D on one warp (PTX 9.7.14.5). Collective over the warp; registers only, no memory
// ordering. Lane maps: layout/mma_fragment.h. Integer sums wrap modulo 2^32, so their order does not matter;
// float order is the hardware's, and the emulator's ascending k in fp32 is one of the allowed ones.
#pragma once

#include "common.h"

namespace lowbit::ptx {

#if !defined(LOWBIT_EMULATE)
#define LOWBIT_MMA_4_4_2(instruction, c)                                                      \
  asm volatile(instruction " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" \
               : c(d[0]), c(d[1]), c(d[2]), c(d[3])                                           \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]))
#endif

// mma.m16n8k64 s4 (9.7.14.5.11). Native on sm_80..89; on sm_90 and later ptxas calls a helper of two s8 mmas.
LOWBIT_DEVICE void mma_m16n8k64_s32_s4_s4(int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#if !defined(LOWBIT_EMULATE)
  LOWBIT_MMA_4_4_2("mma.sync.aligned.m16n8k64.row.col.s32.s4.s4.s32", "+r");
#else
  emu::mma(emu::Mma::kS4S4, d, a, b);
#endif
}

// mma.m16n8k32 s8 (9.7.14.5.10).
LOWBIT_DEVICE void mma_m16n8k32_s32_s8_s8(int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#if !defined(LOWBIT_EMULATE)
  LOWBIT_MMA_4_4_2("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32", "+r");
#else
  emu::mma(emu::Mma::kS8S8, d, a, b);
#endif
}

// mma.m16n8k32, A unsigned.
LOWBIT_DEVICE void mma_m16n8k32_s32_u8_s8(int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#if !defined(LOWBIT_EMULATE)
  LOWBIT_MMA_4_4_2("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32", "+r");
#else
  emu::mma(emu::Mma::kU8S8, d, a, b);
#endif
}

// mma.m16n8k32, B unsigned.
LOWBIT_DEVICE void mma_m16n8k32_s32_s8_u8(int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#if !defined(LOWBIT_EMULATE)
  LOWBIT_MMA_4_4_2("mma.sync.aligned.m16n8k32.row.col.s32.s8.u8.s32", "+r");
#else
  emu::mma(emu::Mma::kS8U8, d, a, b);
#endif
}

// mma.m16n8k16 f16, fp32 accumulators (9.7.14.5.8).
LOWBIT_DEVICE void mma_m16n8k16_f32_f16_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#if !defined(LOWBIT_EMULATE)
  LOWBIT_MMA_4_4_2("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32", "+f");
#else
  emu::mma(emu::Mma::kF16F16, d, a, b);
#endif
}

// mma.m16n8k16 bf16, fp32 accumulators (9.7.14.5.8).
LOWBIT_DEVICE void mma_m16n8k16_f32_bf16_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#if !defined(LOWBIT_EMULATE)
  LOWBIT_MMA_4_4_2("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32", "+f");
#else
  emu::mma(emu::Mma::kBf16Bf16, d, a, b);
#endif
}

#if !defined(LOWBIT_EMULATE)
#undef LOWBIT_MMA_4_4_2
#endif

}  // namespace lowbit::ptx
