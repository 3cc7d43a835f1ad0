// The vector vocabulary in plain C++: one lane. The executable specification of vec_avx2.h and vec_avx512.h.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "../numeric/fp4_table.h"
#include "../numeric/minifloat.h"

namespace lowbit::cpu::LOWBIT_ISA {

using V = float;
constexpr int kLanes = 1, kLogLanes = 0;

static inline V load(const float* p) { return *p; }
static inline void store(float* p, V v) { *p = v; }
struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};
static inline V load(const bf16* p) { return bf16_to_float(p->bits); }
static inline V load(const f16* p) { return fp16_to_float(p->bits); }
static inline void store(bf16* p, V v) { p->bits = float_to_bf16(v); }
static inline void store(f16* p, V v) { p->bits = float_to_fp16(v); }
static inline V set1(float x) { return x; }
static inline V add(V a, V b) { return a + b; }
static inline V sub(V a, V b) { return a - b; }
static inline V mul(V a, V b) { return a * b; }
static inline V div(V a, V b) { return a / b; }
static inline V round_even(V a) { return std::nearbyint(a); }
// p * 2^n for integers n where the result is a normal number; a NaN stays one
static inline V times_power(V p, V n) {
  return n == n ? bits_float(float_bits(p) + (uint32_t(int32_t(n)) << 23)) : p;
}
// sums of neighbours: a[0] + a[1], a[2] + a[3], ..., b[0] + b[1], ...
static inline V pair_sums(V a, V b) { return a + b; }
static inline V min(V a, V b) { return b < a ? b : a; }
static inline V max(V a, V b) { return b > a ? b : a; }
static inline V lane_min(V a) { return a; }
static inline V lane_max(V a) { return a; }
// acc + s * x with s = +-1: the product is exact, so a fused multiply-add gives the same bits
static inline V add_signed(V acc, V s, V x) { return acc + s * x; }
template <int kStage>
static inline V butterfly_within(V a) {
  return a;
}

using I = int32_t;  // max of |x| as integer bits: NaN > inf > finite, alike on every instruction set
static inline I zero_bits() { return 0; }
static inline I max_abs_bits(I acc, V x) {
  const int32_t a = int32_t(float_bits(x) & 0x7fffffffu);
  return a > acc ? a : acc;
}
static inline int32_t lane_max_bits(I a) { return a; }
// codes = rint(x * inv) clamped to [lo, hi]
static inline V to_codes(V x, V inv, V lo, V hi) { return round_even(min(max(x * inv, lo), hi)); }
static inline void store_i8(int8_t* p, V codes) { *p = int8_t(codes); }
// codes of a Minifloat; never of NaN
template <class F>
static inline I encode(V y) {
  return F::encode(y);
}
static inline void store_u8(uint8_t* p, I codes) { *p = uint8_t(codes); }
static inline V from_i32(const int32_t* p) { return float(*p); }
static inline V from_u8(const uint8_t* p) { return float(*p); }

// ---- integer dot products over a tile of 16 channels x 4 k ----

struct NoTable {
  explicit NoTable(const Fp4Table*) {}
};

// Nibbles that hold value + zero point (int4), or that a table turns into that (kTable).
template <bool kTable>
struct NibbleDot {
  static constexpr int kRows = 4, kTiles = 1, kWordsPerK4 = 1, kZeroPoint = 8;
  struct Table {
    uint8_t v[16];
    explicit Table(const Fp4Table* t) {
      for (int i = 0; i < 16; ++i) v[i] = uint8_t(kTable ? t->value[i] + t->max : i);
    }
  };
  struct Block {
    int32_t v[16];
  };
  struct W {
    const uint8_t *p, *table;
    int shift;
  };
  static constexpr int64_t max_block(int, int) { return 512; }
  template <int kHalf>
  static inline W unpack(const Table& table, const uint8_t* tile) {
    return {tile, table.v, 4 * kHalf};
  }
  static inline void pack_word(const int8_t* a, int32_t* out) { memcpy(out, a, 4); }
  static inline int32_t correction(int32_t zero, int32_t s01, int32_t s23) { return -zero * (s01 + s23); }
  static inline void init(Block& b, const int32_t* corr) {
    for (int n = 0; n < 16; ++n) b.v[n] = *corr;
  }
  static inline void dot(Block& b, const W& w, const int32_t* a) {
    int8_t x[4];
    memcpy(x, a, 4);
    for (int n = 0; n < 16; ++n)
      for (int i = 0; i < 4; ++i) b.v[n] += int32_t(w.table[(w.p[4 * n + i] >> w.shift) & 15]) * x[i];
  }
  static inline void flush(int32_t* total, const Block& b, const uint8_t* s1) {
    for (int n = 0; n < 16; ++n) total[n] += b.v[n] * s1[n];
  }
};
using Int4Dot = NibbleDot<false>;
using Fp4Dot = NibbleDot<true>;
using WideFp4Dot = Fp4Dot;

struct Int8Dot {
  static constexpr int kRows = 4, kTiles = 1, kWordsPerK4 = 1, kZeroPoint = 0;
  using Table = NoTable;
  using Block = Int4Dot::Block;
  struct W {
    const int8_t* p;
  };
  static constexpr int64_t max_block(int, int) { return 512; }
  template <int kHalf>
  static inline W unpack(const Table&, const uint8_t* tile) {
    return {reinterpret_cast<const int8_t*>(tile) + 64 * kHalf};
  }
  static inline void pack_word(const int8_t* a, int32_t* out) { memcpy(out, a, 4); }
  static inline int32_t correction(int32_t, int32_t, int32_t) { return 0; }
  static inline void init(Block& b, const int32_t* corr) { Int4Dot::init(b, corr); }
  static inline void dot(Block& b, const W& w, const int32_t* a) {
    int8_t x[4];
    memcpy(x, a, 4);
    for (int n = 0; n < 16; ++n)
      for (int i = 0; i < 4; ++i) b.v[n] += int32_t(w.p[4 * n + i]) * x[i];
  }
  static inline void flush(int32_t* total, const Block& b, const uint8_t* s1) {
    Int4Dot::flush(total, b, s1);
  }
};

// ---- weight-only GEMM: 16 channels of 16-bit words, and of fp32 ----

constexpr int kFpRows = 4, kPairedRows = 2;
struct Half {
  uint16_t v[16];
};
struct Wide {
  float v[16];
};
template <class F>
static inline Half each(F f) {
  Half h;
  for (int n = 0; n < 16; ++n) h.v[n] = uint16_t(f(n));
  return h;
}
static inline Half load_half(const void* p) {
  Half h;
  memcpy(&h, p, sizeof(h));
  return h;
}
template <int kBits>
static inline Half shift_left(Half h) {
  return each([&](int n) { return h.v[n] << kBits; });
}
template <int kBits>
static inline Half shift_right(Half h) {  // arithmetic
  return each([&](int n) { return int16_t(h.v[n]) >> kBits; });
}
static inline Half mask(Half h, int bits) {
  return each([&](int n) { return h.v[n] & bits; });
}
static inline Half either(Half a, Half b) {
  return each([&](int n) { return a.v[n] | b.v[n]; });
}
template <class F>
static inline Wide each_wide(F f) {
  Wide w;
  for (int n = 0; n < 16; ++n) w.v[n] = f(n);
  return w;
}
static inline Wide from_fp16(Half h) {
  return each_wide([&](int n) { return fp16_to_float(h.v[n]); });
}
static inline Wide from_s16(Half h) {
  return each_wide([&](int n) { return float(int16_t(h.v[n])); });
}
static inline Wide from_e8m0(const uint8_t* p) {
  return each_wide([&](int n) { return e8m0::decode(p[n]); });
}
using Split = Wide;  // one conversion widens all sixteen: nothing to gain by going through bf16
constexpr bool kHasSplit = false;
static inline bool prefers_split() { return false; }
static inline void arrange(const Wide& w, Wide& to) { to = w; }
static inline const Wide& in_order(const Wide& w) { return w; }
static inline Wide times(const Wide& w, float) { return w; }
static inline Wide zeros() { return Wide{}; }
static inline Wide load_wide(const float* p) {
  return each_wide([&](int n) { return p[n]; });
}
static inline void store_wide(float* p, const Wide& w) { memcpy(p, w.v, sizeof(w.v)); }
static inline void multiply_add(Wide& acc, const Wide& w, float x) {
  for (int n = 0; n < 16; ++n) acc.v[n] = std::fma(w.v[n], x, acc.v[n]);
}
static inline void add_scaled(float* sum, const Wide& acc, const Wide& scale) {
  for (int n = 0; n < 16; ++n) sum[n] = std::fma(acc.v[n], scale.v[n], sum[n]);
}
static inline float to_float(float x) { return x; }
static inline float to_float(bf16 x) { return bf16_to_float(x.bits); }
static inline float to_float(f16 x) { return fp16_to_float(x.bits); }

// ---- attention over keys and values ----

// kLanes pairs of fp16, taken apart
static inline void load_pairs(const uint16_t* p, V& first, V& second) {
  first = fp16_to_float(p[0]), second = fp16_to_float(p[1]);
}
// 64 nibbles as 16 words of four. A Split has one float per word.
struct Words {
  uint16_t v[16];
};
static inline Words load_words(const uint8_t* p) {
  Words w;
  for (int i = 0; i < 16; ++i) w.v[i] = uint16_t(p[2 * i] | (p[2 * i + 1] << 8));
  return w;
}
// nibble j of every word, times 16^j: the multiplicand carries 16^-j, and no shift is needed
static inline Split nibbles(const Words& w, int j) {
  return each_wide([&](int i) { return float(w.v[i] & (15 << (4 * j))); });
}
static inline Split no_split() { return Split{}; }
static inline Split load_split(const float* p) { return load_wide(p); }
static inline void store_split(float* p, const Split& s) { store_wide(p, s); }
static inline void multiply_add(Split& acc, const Split& a, const Split& b) {
  for (int i = 0; i < 16; ++i) acc.v[i] = std::fma(a.v[i], b.v[i], acc.v[i]);
}
// the sixteen lanes of each of four, neighbours first: ((v0 + v1) + (v2 + v3)) + ...
static inline void lane_sums(const Split (&s)[4], float* sums) {
  for (int k = 0; k < 4; ++k) {
    float v[16];
    memcpy(v, s[k].v, sizeof(v));
    for (int n = 8; n; n /= 2)
      for (int i = 0; i < n; ++i) v[i] = v[2 * i] + v[2 * i + 1];
    sums[k] = v[0];
  }
}
// sixteen elements
template <class T>
static inline Wide widen(const T* p) {
  return each_wide([&](int n) { return load(p + n); });
}
constexpr int kValueBlocks[5] = {0, 4, 4, 4, 4};  // of 16 values at a time, by heads

}  // namespace lowbit::cpu::LOWBIT_ISA
