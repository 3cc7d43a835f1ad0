// The vector vocabulary on AVX2 + FMA + F16C: eight lanes.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace lowbit::cpu::LOWBIT_ISA {

using V = __m256;
constexpr int kLanes = 8, kLogLanes = 3;

struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};
static inline V load(const float* p) { return _mm256_loadu_ps(p); }
static inline void store(float* p, V v) { _mm256_storeu_ps(p, v); }
static inline V load(const bf16* p) {
  const __m128i h = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16));
}
static inline V load(const f16* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
static inline __m256i round_bf16(V v) {
  const __m256i u = _mm256_castps_si256(v);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
  return _mm256_srli_epi32(_mm256_add_epi32(u, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
}
static inline void store(bf16* p, V v) {
  __m256i r = round_bf16(v);
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
  r = _mm256_blendv_epi8(r, _mm256_set1_epi32(0x7fc0), nan);
  r = _mm256_permute4x64_epi64(_mm256_packus_epi32(r, r), 0x08);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(r));
}
static inline void store(f16* p, V v) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
}
static inline V set1(float x) { return _mm256_set1_ps(x); }
static inline V add(V a, V b) { return _mm256_add_ps(a, b); }
static inline V sub(V a, V b) { return _mm256_sub_ps(a, b); }
static inline V mul(V a, V b) { return _mm256_mul_ps(a, b); }
static inline V min(V a, V b) { return _mm256_min_ps(b, a); }
static inline V max(V a, V b) { return _mm256_max_ps(b, a); }
static inline float lane_min(V a) {
  __m128 m = _mm_min_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  m = _mm_min_ps(m, _mm_movehl_ps(m, m));
  return _mm_cvtss_f32(_mm_min_ss(m, _mm_movehdup_ps(m)));
}
static inline float lane_max(V a) {
  __m128 m = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  m = _mm_max_ps(m, _mm_movehl_ps(m, m));
  return _mm_cvtss_f32(_mm_max_ss(m, _mm_movehdup_ps(m)));
}
// acc + s * x with s = +-1: the product is exact, so fusing changes no bit
static inline V add_signed(V acc, V s, V x) { return _mm256_fmadd_ps(s, x, acc); }

// One butterfly stage inside a register, stride 1 << kStage: (a, b) -> (a + b, a - b), as swapped +- x.
template <int kStage>
static inline V butterfly_within(V x) {
  static_assert(kStage < kLogLanes);
  if constexpr (kStage == 0)
    return add_signed(_mm256_permute_ps(x, 0xB1), _mm256_setr_ps(1, -1, 1, -1, 1, -1, 1, -1), x);
  if constexpr (kStage == 1)
    return add_signed(_mm256_permute_ps(x, 0x4E), _mm256_setr_ps(1, 1, -1, -1, 1, 1, -1, -1), x);
  return add_signed(_mm256_permute2f128_ps(x, x, 0x01), _mm256_setr_ps(1, 1, 1, 1, -1, -1, -1, -1), x);
}

// Two neighbouring registers to bf16, for values computed from bf16: their NaN have low bits of zero and
// survive the rounding, which spares the test.
static inline void store_pair(bf16* p, V a, V b) {
  const __m256i r = _mm256_packus_epi32(round_bf16(a), round_bf16(b));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_permute4x64_epi64(r, 0xD8));
}

using I = __m256i;
static inline I zero_bits() { return _mm256_setzero_si256(); }
static inline I max_abs_bits(I acc, V x) {
  return _mm256_max_epi32(acc, _mm256_and_si256(_mm256_castps_si256(x), _mm256_set1_epi32(0x7fffffff)));
}
static inline int32_t lane_max_bits(I a) {
  __m128i m = _mm_max_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
  m = _mm_max_epi32(m, _mm_shuffle_epi32(m, 0x4E));
  return _mm_cvtsi128_si32(_mm_max_epi32(m, _mm_shuffle_epi32(m, 0xB1)));
}
static inline V to_codes(V x, V inv, V lo, V hi) {
  return _mm256_round_ps(min(max(mul(x, inv), lo), hi), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
static inline void store_i8(int8_t* p, V codes) {
  const __m256i i = _mm256_cvtps_epi32(codes);
  const __m128i s = _mm_packs_epi32(_mm256_castsi256_si128(i), _mm256_extracti128_si256(i, 1));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packs_epi16(s, s));
}
static inline V from_i32(const int32_t* p) {
  return _mm256_cvtepi32_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
static inline V from_u8(const uint8_t* p) {
  return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
}

// ---- integer dot products over a tile of 16 channels x 4 k ----

static inline __m256i broadcast(const int32_t* p) { return _mm256_set1_epi32(*p); }
static inline __m256i load_bytes(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
static inline void add_to(int32_t* total, __m256i v) {
  __m256i* t = reinterpret_cast<__m256i*>(total);
  _mm256_storeu_si256(t, _mm256_add_epi32(_mm256_loadu_si256(t), v));
}

// Nibbles 0..15 times int8: vpmaddubsw cannot saturate (2 * 15 * 128 < 2^15), and its s16 lanes add up over a
// whole block before one vpmaddwd widens them, multiplied by the group scale. A block's lane sum of q * a,
// the zero point already taken off by the initial value, must fit s16. Half of a block's k share a lane: 8 *
// 127 * 32 fits for 64 k of quantised int8 activations, 8 * 128 * 16 for 32 k of any int8, 8 * 8 * 256 for
// 512 k of int4. What wraps on the way comes back.
struct Int4Dot {
  static constexpr int kRows = 4, kTiles = 1, kWordsPerK4 = 1, kZeroPoint = 8;
  struct Block {
    __m256i a, b;
  };
  struct W {
    __m256i a, b;
  };
  static constexpr int64_t max_block(int max_code) { return max_code <= 8 ? 512 : max_code <= 127 ? 64 : 32; }
  template <int kHalf>
  static inline W unpack(const uint8_t* tile) {
    const __m256i mask = _mm256_set1_epi8(15), a = load_bytes(tile), b = load_bytes(tile + 32);
    if constexpr (kHalf == 0) return {_mm256_and_si256(a, mask), _mm256_and_si256(b, mask)};
    return {_mm256_and_si256(_mm256_srli_epi16(a, 4), mask), _mm256_and_si256(_mm256_srli_epi16(b, 4), mask)};
  }
  static inline void pack_word(const int8_t* a, int32_t* out) { __builtin_memcpy(out, a, 4); }
  static inline int32_t correction(int32_t s01, int32_t s23) {
    return int32_t((uint32_t(-kZeroPoint * s01) & 0xffffu) | (uint32_t(-kZeroPoint * s23) << 16));
  }
  static inline void init(Block& b, const int32_t* corr) { b.a = b.b = broadcast(corr); }
  static inline void dot(Block& b, const W& w, const int32_t* a) {
    const __m256i x = broadcast(a);
    b.a = _mm256_add_epi16(b.a, _mm256_maddubs_epi16(w.a, x));
    b.b = _mm256_add_epi16(b.b, _mm256_maddubs_epi16(w.b, x));
  }
  static inline void flush(int32_t* total, const Block& b, const uint8_t* s1) {
    const __m128i s = _mm_loadu_si128(reinterpret_cast<const __m128i*>(s1));
    __m256i sa = _mm256_cvtepu8_epi32(s), sb = _mm256_cvtepu8_epi32(_mm_srli_si128(s, 8));
    sa = _mm256_or_si256(sa, _mm256_slli_epi32(sa, 16));
    sb = _mm256_or_si256(sb, _mm256_slli_epi32(sb, 16));
    add_to(total, _mm256_madd_epi16(b.a, sa));
    add_to(total + 8, _mm256_madd_epi16(b.b, sb));
  }
};

// int8 times int8: vpmaddubsw would saturate, so both operands are widened to s16 (the activations when
// packed).
struct Int8Dot {
  static constexpr int kRows = 3, kTiles = 1, kWordsPerK4 = 2, kZeroPoint = 0;
  struct Block {
    __m256i a, b;
  };
  struct W {
    __m256i a_even, a_odd, b_even, b_odd;
  };
  static constexpr int64_t max_block(int) { return 512; }
  template <int kHalf>
  static inline W unpack(const uint8_t* tile) {
    const __m256i a = load_bytes(tile + 64 * kHalf), b = load_bytes(tile + 64 * kHalf + 32);
    return {_mm256_srai_epi16(_mm256_slli_epi16(a, 8), 8), _mm256_srai_epi16(a, 8),
            _mm256_srai_epi16(_mm256_slli_epi16(b, 8), 8), _mm256_srai_epi16(b, 8)};
  }
  static inline void pack_word(const int8_t* a, int32_t* out) {
    out[0] = int32_t((uint32_t(a[0]) & 0xffffu) | (uint32_t(a[2]) << 16));
    out[1] = int32_t((uint32_t(a[1]) & 0xffffu) | (uint32_t(a[3]) << 16));
  }
  static inline int32_t correction(int32_t, int32_t) { return 0; }
  static inline void init(Block& b, const int32_t* corr) { b.a = b.b = broadcast(corr); }
  static inline void dot(Block& b, const W& w, const int32_t* a) {
    const __m256i even = broadcast(a), odd = broadcast(a + 1);
    b.a = _mm256_add_epi32(
        b.a, _mm256_add_epi32(_mm256_madd_epi16(w.a_even, even), _mm256_madd_epi16(w.a_odd, odd)));
    b.b = _mm256_add_epi32(
        b.b, _mm256_add_epi32(_mm256_madd_epi16(w.b_even, even), _mm256_madd_epi16(w.b_odd, odd)));
  }
  static inline void flush(int32_t* total, const Block& b, const uint8_t*) {
    add_to(total, b.a);
    add_to(total + 8, b.b);
  }
};

}  // namespace lowbit::cpu::LOWBIT_ISA
