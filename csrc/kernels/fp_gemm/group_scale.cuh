// Scales of groups of k: [64 channels][groups][64], E8M0 or fp16, as floats and as factors of A registers.
#pragma once

#include "../../ptx/bits.h"
#include "../../ptx/memory.h"
#include "params.h"

namespace lowbit::kernels::fp_gemm {

// E8M0 is the exponent field of an fp32, its code 0 the subnormal 2^-127 (255, NaN, is refused at the
// prepack).
LOWBIT_DEVICE float e8m0_value(uint8_t code) {
  return ptx::max_f32(ptx::bit_cast<float>(uint32_t(code) << 23), 0x1p-127f);
}

// The scales at `at`, at + 8, ... of staged ones.
template <int kCount>
LOWBIT_DEVICE void load_scales(float (&scale)[kCount], Scales kind, ptx::smem_ptr<uint8_t> scales, int at) {
  if (kind == Scales::kE8M0) {
    LOWBIT_UNROLL
    for (int i = 0; i < kCount; ++i) scale[i] = e8m0_value(ptx::ld_shared(scales + (at + 8 * i)));
  } else {
    const auto values = scales.template as<uint16_t>() + at;
    LOWBIT_UNROLL
    for (int i = 0; i < kCount; ++i) scale[i] = ptx::cvt_f32_f16(ptx::ld_shared(values + 8 * i));
  }
}

// What multiplies the pairs of an A register. bf16 does not hold an fp16 scale: it is the sum of two.
template <Half kHalf>
struct PairScale {
  uint32_t high, low;

  LOWBIT_DEVICE explicit PairScale(float s) : high(0), low(0) {
    if constexpr (kHalf == Half::kF16) {
      s = ptx::min_f32(s, 65504.f);  // an infinite scale would make NaN of zeros
      high = ptx::cvt_rn_f16x2_f32(s, s);
    } else {
      high = ptx::cvt_rn_bf16x2_f32(s, s);
      const float rest = ptx::sub_rn(s, ptx::cvt_f32_bf16(uint16_t(high)));
      low = ptx::cvt_rn_bf16x2_f32(rest, rest);
    }
  }

  // pair: of Slab::fragments. The value times the scale, rounded to fp16; to bf16 but for 2^-8 of a step.
  template <Weight kWeight>
  LOWBIT_DEVICE uint32_t times(uint32_t pair) const {
    constexpr uint32_t kMinusZero = 0x80008000u;
    if constexpr (kHalf == Half::kBF16)
      return ptx::fma_rn_bf16x2(pair, high, ptx::fma_rn_bf16x2(pair, low, kMinusZero));
    if constexpr (kWeight != Weight::kInt4) {  // to its own size first: what is small here would lose bits
      constexpr uint32_t power = uint32_t(15 + fp_fragment::exponent_shift(kWeight, kHalf)) << 10;
      pair = ptx::fma_rn_f16x2(pair, power | power << 16, kMinusZero);
    }
    return ptx::fma_rn_f16x2(pair, high, kMinusZero);
  }
};

}  // namespace lowbit::kernels::fp_gemm
