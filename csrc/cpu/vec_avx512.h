// The vector vocabulary on AVX-512 (F, BW, DQ, VL, VNNI): sixteen lanes.
// With LOWBIT_SIMDE the same source compiles against SIMDe's portable intrinsics, so that its bits are proven
// on machines without AVX-512; that build is for the tests only.
#pragma once

#ifdef LOWBIT_SIMDE
#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>
#include <simde/x86/f16c.h>
#include <simde/x86/fma.h>

#include "simde_missing.h"
#define _MM_PERM_ENUM(x) (x)
#else
#include <immintrin.h>
#endif

#include <cstdint>

#include "../numeric/fp4_table.h"
#include "../numeric/minifloat.h"

namespace lowbit::cpu::LOWBIT_ISA {

using V = __m512;
constexpr int kLanes = 16, kLogLanes = 4;

struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};
static inline V load(const float* p) { return _mm512_loadu_ps(p); }
static inline void store(float* p, V v) { _mm512_storeu_ps(p, v); }
static inline __m256i load256(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
static inline V load(const bf16* p) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(load256(p)), 16));
}
static inline V load(const f16* p) { return _mm512_cvtph_ps(load256(p)); }
static inline void store(bf16* p, V v) {
  const __m512i u = _mm512_castps_si512(v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
  __m512i r = _mm512_srli_epi32(_mm512_add_epi32(u, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))), 16);
  r = _mm512_mask_blend_epi32(_mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q), r, _mm512_set1_epi32(0x7fc0));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(r));
}
static inline void store(f16* p, V v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
}
static inline V set1(float x) { return _mm512_set1_ps(x); }
static inline V add(V a, V b) { return _mm512_add_ps(a, b); }
static inline V sub(V a, V b) { return _mm512_sub_ps(a, b); }
static inline V mul(V a, V b) { return _mm512_mul_ps(a, b); }
static inline V div(V a, V b) { return _mm512_div_ps(a, b); }
static inline V round_even(V a) {
  return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
static inline V times_power(V p, V n) {
  const __m512i shifted = _mm512_slli_epi32(_mm512_cvtps_epi32(n), 23);
  return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(p), shifted));
}
static inline V pair_sums(V a, V b) {
  const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  const __m512i odd = _mm512_setr_epi32(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
  return _mm512_add_ps(_mm512_permutex2var_ps(a, even, b), _mm512_permutex2var_ps(a, odd, b));
}
static inline V min(V a, V b) { return _mm512_min_ps(b, a); }
static inline V max(V a, V b) { return _mm512_max_ps(b, a); }
static inline float lane_min(V a) {
  alignas(64) float t[16];
  _mm512_store_ps(t, a);
  float m = t[0];
  for (int i = 1; i < 16; ++i) m = t[i] < m ? t[i] : m;
  return m;
}
static inline float lane_max(V a) {
  alignas(64) float t[16];
  _mm512_store_ps(t, a);
  float m = t[0];
  for (int i = 1; i < 16; ++i) m = t[i] > m ? t[i] : m;
  return m;
}
static inline V add_signed(V acc, V s, V x) { return _mm512_fmadd_ps(s, x, acc); }

template <int kStage>
static inline V butterfly_within(V x) {
  static_assert(kStage < kLogLanes);
  const __m512i u = _mm512_castps_si512(x);
  __m512i swapped;
  if constexpr (kStage == 0) swapped = _mm512_shuffle_epi32(u, _MM_PERM_ENUM(0xB1));
  if constexpr (kStage == 1) swapped = _mm512_shuffle_epi32(u, _MM_PERM_ENUM(0x4E));
  if constexpr (kStage == 2) swapped = _mm512_shuffle_i32x4(u, u, 0xB1);
  if constexpr (kStage == 3) swapped = _mm512_shuffle_i32x4(u, u, 0x4E);
  constexpr uint16_t kOdd[4] = {0xAAAA, 0xCCCC, 0xF0F0, 0xFF00};  // lanes that get a - b
  const V sign = _mm512_mask_blend_ps(kOdd[kStage], _mm512_set1_ps(1.f), _mm512_set1_ps(-1.f));
  return add_signed(_mm512_castsi512_ps(swapped), sign, x);
}

// Two registers to bf16, for values computed from bf16: their NaN have low bits of zero and survive the
// rounding, which spares the test. The result's upper half of every 32 bits.
static inline __m512i round_upper(V v) {
  const __m512i u = _mm512_castps_si512(v);
  const __mmask16 odd = _mm512_test_epi32_mask(u, _mm512_set1_epi32(0x10000));
  return _mm512_add_epi32(u,
                          _mm512_mask_blend_epi32(odd, _mm512_set1_epi32(0x7fff), _mm512_set1_epi32(0x8000)));
}
static inline __m512i round_even_odd(V even, V odd) {
  return _mm512_mask_blend_epi16(0xAAAAAAAA, _mm512_srli_epi32(round_upper(even), 16), round_upper(odd));
}
static inline __m512i round_two(V a, V b) {  // a, then b
  const __m512i order = _mm512_setr_epi32(
      0x00020000, 0x00060004, 0x000a0008, 0x000e000c, 0x00120010, 0x00160014, 0x001a0018, 0x001e001c,
      0x00030001, 0x00070005, 0x000b0009, 0x000f000d, 0x00130011, 0x00170015, 0x001b0019, 0x001f001d);
  return _mm512_permutexvar_epi16(order, round_even_odd(a, b));
}
static inline void store_pair(bf16* p, V a, V b) { _mm512_storeu_si512(p, round_two(a, b)); }
static inline void store_two(bf16* p, bf16* q, V a, V b) {
  const __m512i r = round_two(a, b);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_castsi512_si256(r));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(q), _mm512_extracti64x4_epi64(r, 1));
}
// 2 kLanes neighbours as their even and odd ones
static inline void load_even_odd(const bf16* p, V& even, V& odd) {
  const __m512i words = _mm512_loadu_si512(p);
  even = _mm512_castsi512_ps(_mm512_slli_epi32(words, 16));
  odd = _mm512_castsi512_ps(_mm512_and_si512(words, _mm512_set1_epi32(int(0xffff0000u))));
}
static inline void store_even_odd(bf16* p, V even, V odd) {
  _mm512_storeu_si512(p, round_even_odd(even, odd));
}

using I = __m512i;
static inline I zero_bits() { return _mm512_setzero_si512(); }
static inline I max_abs_bits(I acc, V x) {
  return _mm512_max_epi32(acc, _mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(0x7fffffff)));
}
static inline int32_t lane_max_bits(I a) {
  alignas(64) int32_t t[16];
  _mm512_store_si512(reinterpret_cast<__m512i*>(t), a);
  int32_t m = t[0];
  for (int i = 1; i < 16; ++i) m = t[i] > m ? t[i] : m;
  return m;
}
static inline V to_codes(V x, V inv, V lo, V hi) { return round_even(min(max(mul(x, inv), lo), hi)); }
static inline void store_i8(int8_t* p, V codes) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(codes)));
}
template <class F>
static inline I encode(V y) {  // Minifloat::encode, step by step
  constexpr int kM = F::kM, kFirst = 128 - F::kExponentBias;
  const I u = _mm512_castps_si512(y), top = _mm512_castps_si512(_mm512_set1_ps(F::kMax));
  const I a = _mm512_min_epi32(_mm512_and_si512(u, _mm512_set1_epi32(0x7fffffff)), top);
  const I binade = _mm512_max_epi32(_mm512_srli_epi32(a, 23), _mm512_set1_epi32(kFirst));
  const I power = _mm512_slli_epi32(_mm512_sub_epi32(_mm512_set1_epi32(254 + kM), binade), 23);
  const V steps = mul(_mm512_castsi512_ps(a), _mm512_castsi512_ps(power));
  const I n = _mm512_castps_si512(add(steps, set1(8388608.f)));  // and the bits of 2^23
  const I above = _mm512_slli_epi32(_mm512_sub_epi32(binade, _mm512_set1_epi32(kFirst)), kM);
  const I code = _mm512_add_epi32(_mm512_sub_epi32(n, _mm512_set1_epi32(0x4b000000)), above);
  return _mm512_or_si512(code, _mm512_slli_epi32(_mm512_srli_epi32(u, 31), F::kBits - 1));
}
static inline void store_u8(uint8_t* p, I codes) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(codes));
}
static inline __m512i load512(const void* p) { return _mm512_loadu_si512(static_cast<const __m512i*>(p)); }
static inline __m512i widen_u8(const uint8_t* p) {
  return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
static inline V from_i32(const int32_t* p) { return _mm512_cvtepi32_ps(load512(p)); }
static inline V from_u8(const uint8_t* p) { return _mm512_cvtepi32_ps(widen_u8(p)); }

// ---- integer dot products over a tile of 16 channels x 4 k: one vpdpbusd ----

struct NoTable {
  explicit NoTable(const Fp4Table*) {}
};

static inline void add_to(int32_t* total, __m512i v) {
  __m512i* t = reinterpret_cast<__m512i*>(total);
  _mm512_storeu_si512(t, _mm512_add_epi32(load512(t), v));
}

// The unsigned operand of vpdpbusd is the weight (nibble 0..15, or what kTable makes of it, 0..128), the
// signed one the activation, so that the activation can be broadcast from memory by the instruction itself.
// s32 sums may wrap on the way; the result fits.
template <bool kTable>
struct NibbleDot {
  static constexpr int kRows = 12, kTiles = 2, kWordsPerK4 = 1, kZeroPoint = 8;
  struct Table {
    __m512i v;
    explicit Table(const Fp4Table* t) {
      if constexpr (kTable) {
        const __m128i value = _mm_loadu_si128(reinterpret_cast<const __m128i*>(t->value));
        v = _mm512_broadcast_i32x4(_mm_add_epi8(value, _mm_set1_epi8(char(t->max))));
      }
    }
  };
  struct Block {
    __m512i v;
  };
  struct W {
    __m512i v;
  };
  static constexpr int64_t max_block(int, int) { return 512; }
  template <int kHalf>
  static inline W unpack(const Table& table, const uint8_t* tile) {
    const __m512i mask = _mm512_set1_epi8(15), t = load512(tile);
    const __m512i nibbles = _mm512_and_si512(kHalf ? _mm512_srli_epi16(t, 4) : t, mask);
    if constexpr (kTable) return {_mm512_shuffle_epi8(table.v, nibbles)};
    return {nibbles};
  }
  static inline void pack_word(const int8_t* a, int32_t* out) { __builtin_memcpy(out, a, 4); }
  static inline int32_t correction(int32_t zero, int32_t s01, int32_t s23) { return -zero * (s01 + s23); }
  static inline void init(Block& b, const int32_t* corr) { b.v = _mm512_set1_epi32(*corr); }
  static inline void dot(Block& b, const W& w, const int32_t* a) {
    b.v = _mm512_dpbusd_epi32(b.v, w.v, _mm512_set1_epi32(*a));
  }
  static inline void flush(int32_t* total, const Block& b, const uint8_t* s1) {
    add_to(total, _mm512_mullo_epi32(b.v, widen_u8(s1)));
  }
};
using Int4Dot = NibbleDot<false>;
using Fp4Dot = NibbleDot<true>;
using WideFp4Dot = Fp4Dot;

struct Int8Dot {
  static constexpr int kRows = 12, kTiles = 2, kWordsPerK4 = 1, kZeroPoint = 128;
  using Block = Int4Dot::Block;
  using W = Int4Dot::W;
  using Table = NoTable;
  static constexpr int64_t max_block(int, int) { return 512; }
  template <int kHalf>
  static inline W unpack(const Table&, const uint8_t* tile) {
    return {
        _mm512_xor_si512(load512(tile + 64 * kHalf), _mm512_set1_epi8(char(0x80)))};  // w + 128 is unsigned
  }
  static inline void pack_word(const int8_t* a, int32_t* out) { __builtin_memcpy(out, a, 4); }
  static inline int32_t correction(int32_t zero, int32_t s01, int32_t s23) {
    return int32_t(-uint32_t(zero) * uint32_t(s01 + s23));
  }
  static inline void init(Block& b, const int32_t* corr) { Int4Dot::init(b, corr); }
  static inline void dot(Block& b, const W& w, const int32_t* a) { Int4Dot::dot(b, w, a); }
  static inline void flush(int32_t* total, const Block& b, const uint8_t* s1) {
    Int4Dot::flush(total, b, s1);
  }
};

// ---- weight-only GEMM: 16 channels of 16-bit words, and of fp32 ----

constexpr int kFpRows = 12, kPairedRows = 8;
using Half = __m256i;
static inline Half load_half(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
template <int kBits>
static inline Half shift_left(Half h) {
  return kBits ? _mm256_slli_epi16(h, kBits) : h;
}
template <int kBits>
static inline Half shift_right(Half h) {  // arithmetic
  return _mm256_srai_epi16(h, kBits);
}
static inline Half mask(Half h, int bits) { return _mm256_and_si256(h, _mm256_set1_epi16(short(bits))); }
static inline Half either(Half a, Half b) { return _mm256_or_si256(a, b); }
using Wide = __m512;
static inline Wide from_fp16(Half h) { return _mm512_cvtph_ps(h); }
static inline Wide from_s16(Half h) { return _mm512_cvtepi32_ps(_mm512_cvtepi16_epi32(h)); }
static inline Wide from_e8m0(const uint8_t* p) {  // code 0 is 2^-127, an fp32 subnormal
  const __m512i e = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  return _mm512_castsi512_ps(_mm512_max_epi32(_mm512_slli_epi32(e, 23), _mm512_set1_epi32(0x00400000)));
}
using Split = Wide;  // one conversion widens all sixteen: nothing to gain by going through bf16
constexpr bool kHasSplit = false;
static inline bool prefers_split() { return false; }
static inline void arrange(const Wide& w, Wide& to) { to = w; }
static inline const Wide& in_order(const Wide& w) { return w; }
static inline Wide times(const Wide& w, float) { return w; }
static inline Wide zeros() { return _mm512_setzero_ps(); }
static inline Wide load_wide(const float* p) { return load(p); }
static inline void store_wide(float* p, const Wide& w) { store(p, w); }
static inline void multiply_add(Wide& acc, const Wide& w, float x) { acc = _mm512_fmadd_ps(w, set1(x), acc); }
static inline void add_scaled(float* sum, const Wide& acc, const Wide& scale) {
  store(sum, _mm512_fmadd_ps(acc, scale, load(sum)));
}
static inline float to_float(float x) { return x; }
static inline float to_float(bf16 x) { return bf16_to_float(x.bits); }
static inline float to_float(f16 x) { return fp16_to_float(x.bits); }

// ---- attention over keys and values ----

// kLanes pairs of fp16, taken apart
static inline void load_pairs(const uint16_t* p, V& first, V& second) {
  const __m512i w = load512(p);
  first = _mm512_cvtph_ps(_mm512_cvtepi32_epi16(w));
  second = _mm512_cvtph_ps(_mm512_cvtepi32_epi16(_mm512_srli_epi32(w, 16)));
}
// 64 nibbles as 16 words of four. A Split has one float per word.
using Words = __m512i;
static inline Words load_words(const uint8_t* p) { return _mm512_cvtepu16_epi32(load256(p)); }
// nibble j of every word, times 16^j: the multiplicand carries 16^-j, and no shift is needed
static inline Split nibbles(const Words& w, int j) {
  return _mm512_cvtepi32_ps(_mm512_and_si512(w, _mm512_set1_epi32(15 << (4 * j))));
}
static inline Split no_split() { return _mm512_setzero_ps(); }
static inline Split load_split(const float* p) { return load(p); }
static inline void store_split(float* p, const Split& s) { store(p, s); }
static inline void multiply_add(Split& acc, const Split& a, const Split& b) {
  acc = _mm512_fmadd_ps(a, b, acc);
}
static inline __m256 halves(const Split& s) {
  return _mm256_hadd_ps(_mm512_castps512_ps256(s), _mm512_extractf32x8_ps(s, 1));
}
// the sixteen lanes of each of four, neighbours first: ((v0 + v1) + (v2 + v3)) + ...
static inline void lane_sums(const Split (&s)[4], float* sums) {
  const __m256 ab = _mm256_hadd_ps(halves(s[0]), halves(s[1])),
               cd = _mm256_hadd_ps(halves(s[2]), halves(s[3]));
  const __m128 pairs_ab = _mm_add_ps(_mm256_castps256_ps128(ab), _mm256_extractf128_ps(ab, 1));
  const __m128 pairs_cd = _mm_add_ps(_mm256_castps256_ps128(cd), _mm256_extractf128_ps(cd, 1));
  _mm_storeu_ps(sums, _mm_hadd_ps(pairs_ab, pairs_cd));
}
// sixteen elements
static inline Wide widen(const float* p) { return load(p); }
static inline Wide widen(const f16* p) { return load(p); }
static inline Wide widen(const bf16* p) { return load(p); }
constexpr int kValueBlocks[5] = {0, 4, 4, 4, 4};  // of 16 values at a time, by heads

}  // namespace lowbit::cpu::LOWBIT_ISA
