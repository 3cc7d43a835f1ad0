// Exact-integer GEMM in AMX tiles, for as many rows as repay the making of the weights: codes become int8 in
// L1, scale of their group included (|code| <= 8, scale <= 16), and a sum is a sum of products of int8. The
// integers are those of int_gemm-inl.h.
#pragma once

#include "int_gemm-inl.h"
#include "tile_gemm-inl.h"

namespace lowbit::cpu::LOWBIT_ISA {

constexpr int64_t kStepK = 64, kStepK8 = kStepK / 8;  // of a tile
constexpr int64_t kFewestTileRows = 7;                // below, vpdpbusd is as fast
constexpr int64_t kDeepestTiles = 131071;             // 16 times the sum of more might leave 32 bits

struct IntTiles {
  using Engine = Tiles;
  static constexpr int kTerms = 1;
  static constexpr int64_t kPieceSteps = 8;
  const GemmParams& p;
  Panels panels;
  Blocks blocks;
  uint8_t* x;
  int32_t* kept;
  int64_t k8, tile_bytes, groups;

  explicit IntTiles(const GemmParams& p)
      : p(p),
        panels(p.m, (p.k + kStepK - 1) / kStepK, kTerms, Engine::kRows),
        blocks(panels, kPieceSteps, 2, true),  // pieces begin with a group
        x(reinterpret_cast<uint8_t*>(p.panels)),
        kept(p.panels + panels.count * panels.bytes() / 4),
        k8((p.k + 7) / 8),
        tile_bytes(p.weight_int8 ? tile::kInt8Bytes : tile::kInt4Bytes),
        groups(p.group_scale ? (p.k + p.group - 1) / p.group : 1) {}

  int64_t words() const { return panels.count * panels.bytes() / 4 + blocks.kept_words(panels, p.n); }
  int64_t tile_codes() const { return k8 * tile_bytes; }
  int64_t step_codes() const { return kStepK8 * tile_bytes; }
  const uint8_t* codes(int64_t t, int64_t step) const {
    return p.weight + t * tile_codes() + step * step_codes();
  }

  template <int kRow, int kChannel>
  static inline void dot() {
    dot_s8<kRow, kChannel>();
  }
  int64_t group_steps(int64_t, int64_t) const { return 0; }
  void add_group(const Piece&, int64_t, const int32_t*, int64_t, int32_t*) const {}  // weights have the scale

  // A panel of codes; zeros where there is no row or no k.
  void pack(int64_t panel) const {
    const int64_t full = p.m - panel * panels.rows, tail = 8 * k8 % kStepK;
    for (int64_t r = 0; r < panels.rows; ++r) {
      const int8_t* from = p.x + (panel * panels.rows + r) * p.x_stride;
      uint8_t* to = x + panel * panels.bytes() + r * kTileBytes;
      for (int64_t step = 0; step < panels.steps; ++step, from += kStepK, to += panels.rows * kTileBytes) {
        if (r < full && (step + 1 < panels.steps || !tail)) {
          std::memcpy(to, from, kTileBytes);
        } else {
          std::memset(to, 0, kTileBytes);
          if (r < full) std::memcpy(to, from, size_t(tail));
        }
      }
    }
  }

  // A step of channel tile t as int8, times sum_scale().
  void weights(int64_t t, int64_t step, bool, uint8_t* to) const {
    const int64_t left = k8 - step * kStepK8;
    const Codes some{codes(t, step), to, left < kStepK8 ? left : kStepK8};  // the rest meets zeros
    if (p.weight_int8) return some.copy();
    if (p.fp4) return some.look_up(p.fp4->value);
    if (!p.group_scale) return some.shift();
    const uint8_t* scale = p.group_scale + (t * groups + step * kStepK / p.group) * tile::kN;
    if (p.group >= kStepK) return some.scale(widen_u8(scale), 0, kStepK8);
    some.scale(widen_u8(scale), 0, kStepK8 / 2);
    if (left > kStepK8 / 2) some.scale(widen_u8(scale + tile::kN), kStepK8 / 2, kStepK8);
  }
  float sum_scale() const { return p.weight_int8 || p.fp4 || p.group_scale ? 1.f : 1 / 16.f; }

  void write(const int32_t* sums, int64_t row, int64_t rows, int64_t t, int64_t tiles) const {
    finish(epilogue_of(p), sum_scale(), sums, tiles * 16, row, row + rows < p.m ? rows : p.m - row, t, tiles);
  }

 private:
  // `count` weight tiles of a step, to int8.
  struct Codes {
    const uint8_t* from;
    uint8_t* to;
    int64_t count;

    template <class F>
    inline void each(int64_t begin, int64_t end, const F& decode) const {
      for (int64_t i = begin; i < (end < count ? end : count); ++i) {
        const uint8_t* at = from + i * tile::kInt4Bytes;
        const __m512i low = load512(at);
        _mm512_storeu_si512(to + i * tile::kInt8Bytes, decode(low, false));
        _mm512_storeu_si512(to + i * tile::kInt8Bytes + 64, decode(low, true));
      }
    }
    // Nibbles at the top of their bytes, less their offset: 16 times the code.
    void shift() const {
      const __m512i high = _mm512_set1_epi8(char(0xf0)), offset = _mm512_set1_epi8(char(0x80));
      each(0, kStepK8, [&](__m512i w, bool upper) {
        return _mm512_xor_si512(_mm512_and_si512(upper ? w : _mm512_slli_epi16(w, 4), high), offset);
      });
    }
    // (nibble - 8) * scale, two bytes at a time: 15 * 16 does not leave its byte.
    void scale(__m512i scales, int64_t begin, int64_t end) const {
      const __m512i low = _mm512_set1_epi8(15),
                    pairs = _mm512_or_si512(scales, _mm512_slli_epi32(scales, 16));
      const __m512i offset = _mm512_slli_epi16(_mm512_or_si512(pairs, _mm512_slli_epi16(pairs, 8)), 3);
      each(begin, end, [&](__m512i w, bool upper) {
        const __m512i nibbles = _mm512_and_si512(upper ? _mm512_srli_epi16(w, 4) : w, low);
        return _mm512_sub_epi8(_mm512_mullo_epi16(nibbles, pairs), offset);
      });
    }
    void look_up(const int8_t* value) const {
      const __m128i values = _mm_loadu_si128(reinterpret_cast<const __m128i*>(value));
      const __m512i low = _mm512_set1_epi8(15), table = _mm512_broadcast_i32x4(values);
      each(0, kStepK8, [&](__m512i w, bool upper) {
        return _mm512_shuffle_epi8(table, _mm512_and_si512(upper ? _mm512_srli_epi16(w, 4) : w, low));
      });
    }
    void copy() const {
      for (int64_t i = 0; i < 2 * count; ++i) _mm512_storeu_si512(to + 64 * i, load512(from + 64 * i));
    }
  };
};

static inline bool fits_tiles(const GemmParams& p) {
  return p.m >= kFewestTileRows && p.k > 0 && p.k <= kDeepestTiles;
}

static inline int64_t tile_gemm_panel_words(const GemmParams& p) {
  if (!fits_tiles(p)) return gemm_panel_words(p);
  return IntTiles(p).words();
}

static inline int64_t tile_gemm_panel_count(const GemmParams& p) {
  return !fits_tiles(p) ? gemm_panel_count(p) : IntTiles(p).panels.count;
}

static inline void tile_gemm_pack(const GemmParams& p, int64_t begin, int64_t end) {
  if (!fits_tiles(p)) return gemm_pack(p, begin, end);
  const IntTiles tiles(p);
  for (int64_t i = begin; i < end; ++i) tiles.pack(i);
}

static inline void tile_gemm_tiles(const GemmParams& p, int64_t begin, int64_t end) {
  if (!fits_tiles(p)) return gemm_tiles(p, begin, end);
  run_panel_gemm(IntTiles(p), begin, end);
}

}  // namespace lowbit::cpu::LOWBIT_ISA
