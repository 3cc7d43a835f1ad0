// The vector vocabulary in plain C++: one lane. The executable specification of vec_avx2.h and vec_avx512.h.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "../numeric/float16.h"

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
static inline V to_codes(V x, V inv, V lo, V hi) { return std::nearbyint(min(max(x * inv, lo), hi)); }
static inline void store_i8(int8_t* p, V codes) { *p = int8_t(codes); }
static inline V from_i32(const int32_t* p) { return float(*p); }
static inline V from_u8(const uint8_t* p) { return float(*p); }

// ---- integer dot products over a tile of 16 channels x 4 k ----

struct Int4Dot {
  static constexpr int kRows = 4, kTiles = 1, kWordsPerK4 = 1, kZeroPoint = 8;
  struct Block {
    int32_t v[16];
  };
  struct W {
    const uint8_t* p;
    int shift;
  };
  static constexpr int64_t max_block(int) { return 512; }
  template <int kHalf>
  static inline W unpack(const uint8_t* tile) {
    return {tile, 4 * kHalf};
  }
  static inline void pack_word(const int8_t* a, int32_t* out) { memcpy(out, a, 4); }
  static inline int32_t correction(int32_t s01, int32_t s23) { return -kZeroPoint * (s01 + s23); }
  static inline void init(Block& b, const int32_t* corr) {
    for (int n = 0; n < 16; ++n) b.v[n] = *corr;
  }
  static inline void dot(Block& b, const W& w, const int32_t* a) {
    int8_t x[4];
    memcpy(x, a, 4);
    for (int n = 0; n < 16; ++n)
      for (int i = 0; i < 4; ++i) b.v[n] += int32_t((w.p[4 * n + i] >> w.shift) & 15) * x[i];
  }
  static inline void flush(int32_t* total, const Block& b, const uint8_t* s1) {
    for (int n = 0; n < 16; ++n) total[n] += b.v[n] * s1[n];
  }
};

struct Int8Dot {
  static constexpr int kRows = 4, kTiles = 1, kWordsPerK4 = 1, kZeroPoint = 0;
  using Block = Int4Dot::Block;
  struct W {
    const int8_t* p;
  };
  static constexpr int64_t max_block(int) { return 512; }
  template <int kHalf>
  static inline W unpack(const uint8_t* tile) {
    return {reinterpret_cast<const int8_t*>(tile) + 64 * kHalf};
  }
  static inline void pack_word(const int8_t* a, int32_t* out) { memcpy(out, a, 4); }
  static inline int32_t correction(int32_t, int32_t) { return 0; }
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

}  // namespace lowbit::cpu::LOWBIT_ISA
