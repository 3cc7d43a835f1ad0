// Weight-only GEMM of bf16 activations by AVX512_BF16, for many rows: twice the products of fp32 in an
// instruction. Other activations would take as many terms as make up for that.
#pragma once

#include "dot_gemm-inl.h"
#include "fp_panels-inl.h"

namespace lowbit::cpu::LOWBIT_ISA {

constexpr int64_t kFewestFpDotRows = 6;

struct FpDots : FpPanels<Dots, 1, 8> {
  static constexpr int64_t kFewestRows = kFewestFpDotRows;
  using FpPanels<Dots, 1, 8>::FpPanels;
};

static inline bool fits_fp_dots(const FpGemmParams& p) {
  return p.dtype == DType::bf16 && p.m >= kFewestFpDotRows && p.k > 0;
}

static inline int64_t dot_fp_panel_words(const FpGemmParams& p) {
  return fits_fp_dots(p) ? FpDots(p).words() : fp_panel_words(p);
}

static inline int64_t dot_fp_panel_count(const FpGemmParams& p) {
  return fits_fp_dots(p) ? FpDots(p).panels.count : fp_panel_count(p);
}

static inline bool dot_fp_pack(const FpGemmParams& p, int64_t begin, int64_t end) {
  if (!fits_fp_dots(p)) return fp_pack(p, begin, end);
  const FpDots dots(p);
  for (int64_t i = begin; i < end; ++i) dots.pack(i);
  return true;
}

static inline void dot_fp_tiles(const FpGemmParams& p, int64_t begin, int64_t end) {
  if (!fits_fp_dots(p)) return fp_tiles(p, begin, end);
  run_panel_gemm(FpDots(p), begin, end);
}

}  // namespace lowbit::cpu::LOWBIT_ISA
