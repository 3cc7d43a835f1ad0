// The vector vocabulary on AVX2 + FMA + F16C: eight lanes.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <type_traits>

#include "../numeric/fp4_table.h"
#include "../numeric/minifloat.h"

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
static inline __m256i round_upper(V v) {  // the result's upper half of every 32 bits
  const __m256i u = _mm256_castps_si256(v);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
  return _mm256_add_epi32(u, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
}
static inline __m256i round_bf16(V v) { return _mm256_srli_epi32(round_upper(v), 16); }
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
static inline V div(V a, V b) { return _mm256_div_ps(a, b); }
static inline V round_even(V a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
static inline V times_power(V p, V n) {
  const __m256i shifted = _mm256_slli_epi32(_mm256_cvtps_epi32(n), 23);
  return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p), shifted));
}
static inline V pair_sums(V a, V b) {
  return _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(_mm256_hadd_ps(a, b)), 0xD8));
}
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

// Two registers to bf16, neighbours or not, for values computed from bf16: their NaN have low bits of zero
// and survive the rounding, which spares the test.
static inline __m256i round_two(V a, V b) {
  return _mm256_permute4x64_epi64(_mm256_packus_epi32(round_bf16(a), round_bf16(b)), 0xD8);
}
static inline void store_pair(bf16* p, V a, V b) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), round_two(a, b));
}
static inline void store_two(bf16* p, bf16* q, V a, V b) {
  const __m256i r = round_two(a, b);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(r));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(q), _mm256_extracti128_si256(r, 1));
}

// 2 kLanes neighbours as their even and odd ones
static inline void load_even_odd(const bf16* p, V& even, V& odd) {
  const __m256i words = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  even = _mm256_castsi256_ps(_mm256_slli_epi32(words, 16));
  odd = _mm256_castsi256_ps(_mm256_and_si256(words, _mm256_set1_epi32(int(0xffff0000u))));
}
static inline void store_even_odd(bf16* p, V even, V odd) {
  const __m256i words = _mm256_blend_epi16(round_bf16(even), round_upper(odd), 0xAA);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), words);
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
static inline V to_codes(V x, V inv, V lo, V hi) { return round_even(min(max(mul(x, inv), lo), hi)); }
static inline void store_i8(int8_t* p, V codes) {
  const __m256i i = _mm256_cvtps_epi32(codes);
  const __m128i s = _mm_packs_epi32(_mm256_castsi256_si128(i), _mm256_extracti128_si256(i, 1));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packs_epi16(s, s));
}
template <class F>
static inline I encode(V y) {  // Minifloat::encode, step by step
  constexpr int kM = F::kM, kFirst = 128 - F::kExponentBias;
  const I u = _mm256_castps_si256(y), top = _mm256_castps_si256(_mm256_set1_ps(F::kMax));
  const I a = _mm256_min_epi32(_mm256_and_si256(u, _mm256_set1_epi32(0x7fffffff)), top);
  const I binade = _mm256_max_epi32(_mm256_srli_epi32(a, 23), _mm256_set1_epi32(kFirst));
  const I power = _mm256_slli_epi32(_mm256_sub_epi32(_mm256_set1_epi32(254 + kM), binade), 23);
  const V steps = mul(_mm256_castsi256_ps(a), _mm256_castsi256_ps(power));
  const I n = _mm256_castps_si256(add(steps, set1(8388608.f)));  // and the bits of 2^23
  const I above = _mm256_slli_epi32(_mm256_sub_epi32(binade, _mm256_set1_epi32(kFirst)), kM);
  const I code = _mm256_add_epi32(_mm256_sub_epi32(n, _mm256_set1_epi32(0x4b000000)), above);
  return _mm256_or_si256(code, _mm256_slli_epi32(_mm256_srli_epi32(u, 31), F::kBits - 1));
}
static inline void store_u8(uint8_t* p, I codes) {
  const __m128i s = _mm_packs_epi32(_mm256_castsi256_si128(codes), _mm256_extracti128_si256(codes, 1));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packus_epi16(s, s));
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

struct NoTable {
  explicit NoTable(const Fp4Table*) {}
};

// A table for vpshufb: the unsigned byte value + max of each nibble.
struct NibbleTable {
  __m256i v;
  explicit NibbleTable(const Fp4Table* t) {
    const __m128i value = _mm_loadu_si128(reinterpret_cast<const __m128i*>(t->value));
    v = _mm256_broadcastsi128_si256(_mm_add_epi8(value, _mm_set1_epi8(char(t->max))));
  }
};

// How many k the s16 sums of vpmaddubsw can take. Half of them share a lane, so its sum of q * a is at most
// weight_max * code_max * k / 2 in magnitude; the largest power of two is taken, which divides every scale
// group. (The zero point is already taken off by the initial value; what wraps on the way comes back.)
static constexpr int64_t lane_block(int weight_max, int code_max) {
  int64_t k = 512;
  while (k > 4 && weight_max * code_max * k / 2 > 32767) k /= 2;
  return k;
}
static_assert(lane_block(8, 8) == 512 && lane_block(8, 127) == 64 && lane_block(8, 128) == 32, "int4");
static_assert(lane_block(12, 12) == 256 && lane_block(12, 128) == 32 && lane_block(7, 128) == 64,
              "e2m1, e1m2");
static_assert(lane_block(64, 12) == 64 && lane_block(64, 64) == 8 && lane_block(64, 128) == 4, "e3m0");

// Unsigned bytes times int8: nibbles 0..15 (int4), or what a table makes of them, 0..24, 0..14 or 0..128.
// vpmaddubsw cannot saturate: two products of 128 and -128 are -2^15, the least that s16 holds. Its s16 lanes
// add up over a whole block before one vpmaddwd widens them, multiplied by the group scale.
template <bool kTable>
struct NibbleDot {
  static constexpr int kRows = 4, kTiles = 1, kWordsPerK4 = 1, kZeroPoint = 8;
  using Table = std::conditional_t<kTable, NibbleTable, NoTable>;
  struct Block {
    __m256i a, b;
  };
  struct W {
    __m256i a, b;
  };
  static constexpr int64_t max_block(int weight_max, int code_max) {
    return lane_block(weight_max, code_max);
  }
  template <int kHalf>
  static inline W unpack(const Table& table, const uint8_t* tile) {
    const __m256i mask = _mm256_set1_epi8(15), a = load_bytes(tile), b = load_bytes(tile + 32);
    W w;
    if constexpr (kHalf == 0) w = {_mm256_and_si256(a, mask), _mm256_and_si256(b, mask)};
    else
      w = {_mm256_and_si256(_mm256_srli_epi16(a, 4), mask), _mm256_and_si256(_mm256_srli_epi16(b, 4), mask)};
    if constexpr (kTable) w = {_mm256_shuffle_epi8(table.v, w.a), _mm256_shuffle_epi8(table.v, w.b)};
    return w;
  }
  static inline void pack_word(const int8_t* a, int32_t* out) { __builtin_memcpy(out, a, 4); }
  static inline int32_t correction(int32_t zero, int32_t s01, int32_t s23) {
    return int32_t((uint32_t(-zero * s01) & 0xffffu) | (uint32_t(-zero * s23) << 16));
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
using Int4Dot = NibbleDot<false>;
using Fp4Dot = NibbleDot<true>;

// The same where s16 holds the products of a few k only (e3m0 with e3m0 or int8): every result of vpmaddubsw
// is widened at once, 3 instructions per 32 products instead of 2.
struct WideFp4Dot : Fp4Dot {
  static constexpr int64_t max_block(int, int) { return 512; }
  static inline int32_t correction(int32_t zero, int32_t s01, int32_t s23) { return -zero * (s01 + s23); }
  static inline void dot(Block& b, const W& w, const int32_t* a) {
    const __m256i x = broadcast(a), ones = _mm256_set1_epi16(1);
    b.a = _mm256_add_epi32(b.a, _mm256_madd_epi16(_mm256_maddubs_epi16(w.a, x), ones));
    b.b = _mm256_add_epi32(b.b, _mm256_madd_epi16(_mm256_maddubs_epi16(w.b, x), ones));
  }
  // FP4 has no integer group scales
  static inline void flush(int32_t* total, const Block& b, const uint8_t*) {
    add_to(total, b.a);
    add_to(total + 8, b.b);
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
  using Table = NoTable;
  static constexpr int64_t max_block(int, int) { return 512; }
  template <int kHalf>
  static inline W unpack(const Table&, const uint8_t* tile) {
    const __m256i a = load_bytes(tile + 64 * kHalf), b = load_bytes(tile + 64 * kHalf + 32);
    return {_mm256_srai_epi16(_mm256_slli_epi16(a, 8), 8), _mm256_srai_epi16(a, 8),
            _mm256_srai_epi16(_mm256_slli_epi16(b, 8), 8), _mm256_srai_epi16(b, 8)};
  }
  static inline void pack_word(const int8_t* a, int32_t* out) {
    out[0] = int32_t((uint32_t(a[0]) & 0xffffu) | (uint32_t(a[2]) << 16));
    out[1] = int32_t((uint32_t(a[1]) & 0xffffu) | (uint32_t(a[3]) << 16));
  }
  static inline int32_t correction(int32_t, int32_t, int32_t) { return 0; }
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

// ---- weight-only GEMM: 16 channels of 16-bit words, and of fp32 ----

constexpr int kFpRows = 4, kPairedRows = 2;
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
struct Wide {
  __m256 a, b;
};
static inline Wide from_fp16(Half h) {
  return {_mm256_cvtph_ps(_mm256_castsi256_si128(h)), _mm256_cvtph_ps(_mm256_extracti128_si256(h, 1))};
}
static inline Wide from_s16(Half h) {
  return {_mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(_mm256_castsi256_si128(h))),
          _mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(_mm256_extracti128_si256(h, 1)))};
}
// Sixteen bf16 as fp32 without a conversion: channels 0, 2 .. 14 and 1, 3 .. 15. On Zen 4 a row of e3m2 takes
// two thirds of the time it takes through fp16. Intel's multipliers trap to microcode on subnormals, AMD's do
// not.
struct Split {
  __m256 even, odd;
};
constexpr bool kHasSplit = true;
static inline bool prefers_split() {
  static const bool amd = __builtin_cpu_is("amd");
  return amd;
}
static inline Split split_bf16(Half h) {
  return {_mm256_castsi256_ps(_mm256_slli_epi32(h, 16)),
          _mm256_castsi256_ps(_mm256_and_si256(h, _mm256_set1_epi32(int(0xffff0000u))))};
}
static inline void arrange(const Wide& w, Wide& to) { to = w; }
static inline void arrange(const Wide& w, Split& to) {
  const auto sorted = [](__m256 v) {
    return _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(v), 0xd8));
  };
  to = {sorted(_mm256_shuffle_ps(w.a, w.b, 0x88)), sorted(_mm256_shuffle_ps(w.a, w.b, 0xdd))};
}
static inline const Wide& in_order(const Wide& w) { return w; }
static inline Wide in_order(const Split& s) {
  const __m256 low = _mm256_unpacklo_ps(s.even, s.odd), high = _mm256_unpackhi_ps(s.even, s.odd);
  return {_mm256_permute2f128_ps(low, high, 0x20), _mm256_permute2f128_ps(low, high, 0x31)};
}
static inline __m256 from_e8m0_half(const uint8_t* p) {  // code 0 is 2^-127, an fp32 subnormal
  const __m256i e = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
  return _mm256_castsi256_ps(_mm256_max_epi32(_mm256_slli_epi32(e, 23), _mm256_set1_epi32(0x00400000)));
}
static inline Wide from_e8m0(const uint8_t* p) { return {from_e8m0_half(p), from_e8m0_half(p + 8)}; }
static inline Wide times(const Wide& w, float x) { return {mul(w.a, set1(x)), mul(w.b, set1(x))}; }
static inline Wide zeros() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
static inline Wide load_wide(const float* p) { return {load(p), load(p + 8)}; }
static inline void store_wide(float* p, const Wide& w) { store(p, w.a), store(p + 8, w.b); }
static inline void multiply_add(Wide& acc, const Wide& w, float x) {
  const __m256 v = _mm256_set1_ps(x);
  acc.a = _mm256_fmadd_ps(w.a, v, acc.a);
  acc.b = _mm256_fmadd_ps(w.b, v, acc.b);
}
static inline void multiply_add(Split& acc, const Split& w, float x) {
  const __m256 v = _mm256_set1_ps(x);
  acc.even = _mm256_fmadd_ps(w.even, v, acc.even);
  acc.odd = _mm256_fmadd_ps(w.odd, v, acc.odd);
}
static inline void add_scaled(float* sum, const Wide& acc, const Wide& scale) {
  store(sum, _mm256_fmadd_ps(acc.a, scale.a, load(sum)));
  store(sum + 8, _mm256_fmadd_ps(acc.b, scale.b, load(sum + 8)));
}
static inline float to_float(float x) { return x; }
static inline float to_float(bf16 x) { return bf16_to_float(x.bits); }
static inline float to_float(f16 x) { return fp16_to_float(x.bits); }

// ---- attention over keys and values ----

// kLanes pairs of fp16, taken apart
static inline void load_pairs(const uint16_t* p, V& first, V& second) {
  Split s;
  arrange(from_fp16(load_half(p)), s);
  first = s.even, second = s.odd;
}
// 64 nibbles as 16 words of four. A Split has one float per word.
struct Words {
  __m256i even, odd;
};
static inline Words load_words(const uint8_t* p) {
  const __m256i w = load_half(p);
  return {w, _mm256_srli_epi32(w, 16)};
}
// nibble j of every word, times 16^j: the multiplicand carries 16^-j, and no shift is needed
static inline Split nibbles(const Words& w, int j) {
  const __m256i mask = _mm256_set1_epi32(15 << (4 * j));
  return {_mm256_cvtepi32_ps(_mm256_and_si256(w.even, mask)),
          _mm256_cvtepi32_ps(_mm256_and_si256(w.odd, mask))};
}
static inline Split no_split() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
static inline Split load_split(const float* p) { return {load(p), load(p + 8)}; }
static inline void store_split(float* p, const Split& s) { store(p, s.even), store(p + 8, s.odd); }
static inline void multiply_add(Split& acc, const Split& a, const Split& b) {
  acc.even = _mm256_fmadd_ps(a.even, b.even, acc.even);
  acc.odd = _mm256_fmadd_ps(a.odd, b.odd, acc.odd);
}
// the sixteen lanes of each of four, neighbours first: ((v0 + v1) + (v2 + v3)) + ...
static inline void lane_sums(const Split (&s)[4], float* sums) {
  const __m256 ab = _mm256_hadd_ps(add(s[0].even, s[0].odd), add(s[1].even, s[1].odd));
  const __m256 cd = _mm256_hadd_ps(add(s[2].even, s[2].odd), add(s[3].even, s[3].odd));
  const __m256 t = _mm256_hadd_ps(ab, cd);
  _mm_storeu_ps(sums, _mm_add_ps(_mm256_castps256_ps128(t), _mm256_extractf128_ps(t, 1)));
}
// lanes 0 .. 7 and 8 .. 15: the same sums
static inline void lane_sums(const Wide (&s)[4], float* sums) {
  const auto neighbours = [](const Wide& x, const Wide& y) {
    const __m256 t = _mm256_hadd_ps(_mm256_hadd_ps(x.a, x.b), _mm256_hadd_ps(y.a, y.b));
    return _mm_add_ps(_mm256_castps256_ps128(t), _mm256_extractf128_ps(t, 1));
  };
  _mm_storeu_ps(sums, _mm_hadd_ps(neighbours(s[0], s[1]), neighbours(s[2], s[3])));
}
static inline void multiply_add(Wide& acc, const Wide& a, const Wide& b) {
  acc.a = _mm256_fmadd_ps(a.a, b.a, acc.a);
  acc.b = _mm256_fmadd_ps(a.b, b.b, acc.b);
}
// sixteen elements, as what multiplies them fastest
static inline Wide widen(const float* p) { return load_wide(p); }
static inline Wide widen(const f16* p) { return from_fp16(load_half(p)); }
static inline Split widen(const bf16* p) { return split_bf16(load_half(p)); }
constexpr int kValueBlocks[5] = {0, 4, 2, 2, 1};  // of 16 values at a time, by heads: what 16 registers hold

}  // namespace lowbit::cpu::LOWBIT_ISA
