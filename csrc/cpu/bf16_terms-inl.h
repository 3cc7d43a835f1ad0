// Floats as sums of bf16 numbers, as tiles multiply them: included after vec_avx512.h.
#pragma once

#include <cstdint>

#include "../numeric/dtype.h"

namespace lowbit::cpu::LOWBIT_ISA {

// bf16 has 8 significant bits: bf16, fp16 and fp32 have 8, 11 and 24.
constexpr int terms_of(DType dtype) { return dtype == DType::bf16 ? 1 : dtype == DType::f16 ? 2 : 3; }

// The upper half of the bits, which leave v; of infinity and NaN nothing is left.
template <bool kFinite>
static inline __m256i next_term(V& v) {
  const I bits = _mm512_castps_si512(v), upper = _mm512_srli_epi32(bits, 16);
  const V rest = sub(v, _mm512_castsi512_ps(_mm512_slli_epi32(upper, 16)));
  if (kFinite) return v = rest, _mm512_cvtepi32_epi16(upper);
  const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
  v = _mm512_mask_blend_ps(_mm512_cmp_ps_mask(rest, rest, _CMP_UNORD_Q), rest, set1(0.f));
  return _mm512_cvtepi32_epi16(_mm512_mask_blend_epi32(nan, upper, _mm512_set1_epi32(0x7fc0)));
}

static inline void store_half(uint8_t* to, __m256i v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), v);
}

// kLanes of row[n] from i on, zeros past its end
template <class T>
static inline V lanes_of(const T* row, int64_t i, int64_t n) {
  if (i + kLanes <= n) return load(row + i);
  T tail[kLanes] = {};
  for (int64_t j = 0; i + j < n; ++j) tail[j] = row[i + j];
  return load(tail);
}

}  // namespace lowbit::cpu::LOWBIT_ISA
