// Products of panels by AVX512_BF16: included after vec_avx512.h. An instruction adds two products of bf16 to
// each of sixteen sums; those of a panel and two channel tiles stay in registers.
#pragma once

#include "panel_gemm-inl.h"

namespace lowbit::cpu::LOWBIT_ISA {

// sum += the odd product, then the even one, each rounded; subnormals count as zero, before and after.
static inline V dot_pairs(V sum, __m512i a, __m512i b) {
#ifdef LOWBIT_SIMDE
  const auto no_subnormal = [](float v) { return std::fabs(v) < 0x1p-126f ? std::copysign(0.f, v) : v; };
  float sums[16];
  uint16_t x[32], y[32];
  store(sums, sum), _mm512_storeu_si512(x, a), _mm512_storeu_si512(y, b);
  for (int i = 0; i < 16; ++i) {
    sums[i] = no_subnormal(sums[i]);
    for (int j = 2 * i + 1; j >= 2 * i; --j)
      sums[i] = no_subnormal(
          std::fma(no_subnormal(bf16_to_float(x[j])), no_subnormal(bf16_to_float(y[j])), sums[i]));
  }
  return load(sums);
#else
  return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b);
#endif
}

// A panel: sums[row][t] += its steps [first, last), the sums of a row `T` tiles apart.
template <class Product, int kRows, int T>
static void dot_panel(const Product& p, const Piece& piece, int64_t first, int64_t last, const uint8_t* x,
                      bool zero, float* to) {
  V sums[kRows][T];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 2
    for (int t = 0; t < T; ++t) sums[r][t] = zero ? set1(0.f) : load(to + (r * T + t) * 16);
  for (int64_t step = first; step < last; ++step) {
    const uint8_t* at = x + step * p.panels.step_bytes();
    const uint8_t *w = piece.at(step, 0), *next = piece.at(step, T - 1);
#pragma GCC unroll 2
    for (int64_t pair = 0; pair < kTileRows; ++pair, at += 4, w += kTileBytes, next += kTileBytes) {
      const __m512i weights[2] = {load512(w), load512(next)};
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) {
        int32_t two;
        std::memcpy(&two, at + r * kTileBytes, 4);
        const __m512i activations = _mm512_set1_epi32(two);
#pragma GCC unroll 2
        for (int t = 0; t < T; ++t) sums[r][t] = dot_pairs(sums[r][t], weights[t], activations);
      }
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 2
    for (int t = 0; t < T; ++t) store(to + (r * T + t) * 16, sums[r][t]);
}

// Calls dot_panel with the height of the panel as a constant.
template <class Product, int T, int kRows>
static inline void dot_rows(const Product& p, const Piece& piece, int64_t first, int64_t last,
                            const uint8_t* x, bool zero, float* to) {
  if constexpr (kRows > Product::kFewestRows)
    if (p.panels.rows < kRows) return dot_rows<Product, T, kRows - 1>(p, piece, first, last, x, zero, to);
  dot_panel<Product, kRows, T>(p, piece, first, last, x, zero, to);
}

// Of a Product it takes kFewestRows of a panel; it has one term.
struct Dots {
  static constexpr int64_t kRows = 14;  // 28 sums, 2 weights and an activation in registers
  static constexpr bool kMakesOnTheWay = false;
  struct Config {
    explicit Config(int64_t) {}
  };

  template <class Product, int R, int T, bool>
  static inline void multiply(const Product& p, const Piece& piece, int64_t first, int64_t last,
                              const uint8_t* x, Share share, bool zero, int32_t* to, int64_t second) {
    for (int64_t step = first; step < last; ++step) ask_for_weights<Product, T>(p, piece, step, share);
    for (int64_t i = 0; i < R; ++i)
      dot_rows<Product, T, kRows>(p, piece, first, last, x + i * p.panels.bytes(), zero,
                                  reinterpret_cast<float*>(to + i * second));
  }
};

}  // namespace lowbit::cpu::LOWBIT_ISA
