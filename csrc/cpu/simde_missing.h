// The AVX-512 intrinsics that vec_avx512.h uses and SIMDe 0.7.4 lacks, lane by lane, from Intel's
// definitions. Seen only under LOWBIT_SIMDE.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace lowbit::cpu::simde_missing {

template <class To, class From>
static inline To bits(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof(to));
  return to;
}

template <class T, int kCount>
struct Lanes {
  T v[kCount];
};

static inline simde__m512 cvtph(simde__m256i h) {
  return bits<simde__m512>(
      Lanes<simde__m256, 2>{{simde_mm256_cvtph_ps(simde_mm256_castsi256_si128(h)),
                             simde_mm256_cvtph_ps(simde_mm256_extracti128_si256(h, 1))}});
}
static inline simde__m256i cvtps(simde__m512 v) {  // to nearest
  const auto half = bits<Lanes<simde__m256, 2>>(v);
  return simde_mm256_set_m128i(simde_mm256_cvtps_ph(half.v[1], SIMDE_MM_FROUND_TO_NEAREST_INT),
                               simde_mm256_cvtps_ph(half.v[0], SIMDE_MM_FROUND_TO_NEAREST_INT));
}

template <class To, class From, int kCount, class R, class A, class F>
static inline R map(const A& a, F f) {
  const auto in = bits<Lanes<From, kCount>>(a);
  Lanes<To, kCount> out;
  for (int i = 0; i < kCount; ++i) out.v[i] = f(in.v[i]);
  return bits<R>(out);
}

}  // namespace lowbit::cpu::simde_missing

#define _mm512_cvtph_ps(h) (lowbit::cpu::simde_missing::cvtph(h))
#define _mm512_cvtps_ph(v, rounding) (lowbit::cpu::simde_missing::cvtps(v))
#define _mm512_cvtepu16_epi32(a)                                         \
  (lowbit::cpu::simde_missing::map<int32_t, uint16_t, 16, simde__m512i>( \
      (a), [](uint16_t x) { return int32_t(x); }))
#define _mm512_cvtepu8_epi32(a)                                         \
  (lowbit::cpu::simde_missing::map<int32_t, uint8_t, 16, simde__m512i>( \
      (a), [](uint8_t x) { return int32_t(x); }))
#define _mm512_cvtepi16_epi32(a)                                        \
  (lowbit::cpu::simde_missing::map<int32_t, int16_t, 16, simde__m512i>( \
      (a), [](int16_t x) { return int32_t(x); }))
#define _mm512_cvtepi32_epi16(a)                                        \
  (lowbit::cpu::simde_missing::map<int16_t, int32_t, 16, simde__m256i>( \
      (a), [](int32_t x) { return int16_t(x); }))
#define _mm512_cvtepi32_epi8(a)                                            \
  (lowbit::cpu::simde_missing::map<int8_t, int32_t, 16, simde__m128i>((a), \
                                                                      [](int32_t x) { return int8_t(x); }))
#define _mm512_cvtepi32_ps(a) \
  (lowbit::cpu::simde_missing::map<float, int32_t, 16, simde__m512>((a), [](int32_t x) { return float(x); }))
#define _mm512_cvtps_epi32(a)                                         \
  (lowbit::cpu::simde_missing::map<int32_t, float, 16, simde__m512i>( \
      (a), [](float x) { return int32_t(lrintf(x)); }))
#define _mm512_extractf32x8_ps(a, half) \
  (lowbit::cpu::simde_missing::bits<lowbit::cpu::simde_missing::Lanes<simde__m256, 2>>(a).v[half])
#define _mm512_shuffle_epi32(a, order)                                                                   \
  ([&] {                                                                                                 \
    const auto in = lowbit::cpu::simde_missing::bits<lowbit::cpu::simde_missing::Lanes<int32_t, 16>>(a); \
    auto out = in;                                                                                       \
    for (int i = 0; i < 16; ++i) out.v[i] = in.v[(i & ~3) | ((order >> (2 * (i & 3))) & 3)];             \
    return lowbit::cpu::simde_missing::bits<simde__m512i>(out);                                          \
  }())
