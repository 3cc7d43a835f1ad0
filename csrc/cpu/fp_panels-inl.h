// The operands of a weight-only GEMM as bf16: every weight of 4 or 6 bits is a bf16 number; an activation is
// the sum of one to three (`terms_of`), times a power of two per row that keeps them clear of the subnormals,
// which products of bf16 take for zero. So the products are exact, and sums are fp32 in the engine's order.
#pragma once

#include <algorithm>
#include <cstring>

#include "bf16_terms-inl.h"
#include "fp_gemm-inl.h"
#include "panel_gemm-inl.h"

namespace lowbit::cpu::LOWBIT_ISA {

constexpr int64_t kFpStepK = 32, kFpStepK8 = kFpStepK / 8;  // of a tile
constexpr int kFoldedPowers = 48;  // of e8m0: far from both ends of fp32 even when multiplied and summed

// The bf16 values of a format's codes.
struct CodeTable {
  __m512i low, high;  // of 6-bit codes the first and the second half; of 4-bit ones twice the same, low

  explicit CodeTable(Format format) {
    uint16_t value[64] = {};
    const int codes = 1 << bits_of(format);
    for (int i = 0; i < 64; ++i) {
      const int code = i % codes;
      float v = float(code < 8 ? code : code - 16);  // int4
      with_minifloat(format, [&](auto f) { v = f.decode(code); });
      value[i] = uint16_t(float_bits(v) >> 16);
    }
    low = load512(value), high = load512(value + 32);
  }
};

template <class Engine_, int kTerms_, int64_t kPieceSteps_>
struct FpPanels {
  using Engine = Engine_;
  static constexpr int kTerms = kTerms_;
  static constexpr int64_t kPieceSteps = kPieceSteps_;
  const FpGemmParams& p;
  Panels panels;
  Blocks blocks;
  float* row_scale;  // [m]
  uint8_t* x;
  int32_t* kept;
  int64_t k8, tile_bytes, groups, steps_per_group;
  CodeTable table;

  explicit FpPanels(const FpGemmParams& p)
      : p(p),
        panels(p.m, (p.k + kFpStepK - 1) / kFpStepK, kTerms, Engine::kRows),
        blocks(panels, kPieceSteps, 4, Engine::kMakesOnTheWay),  // the longest group
        row_scale(p.panels),
        x(reinterpret_cast<uint8_t*>(p.panels + (p.m + 15) / 16 * 16)),
        kept(reinterpret_cast<int32_t*>(x + panels.count * panels.bytes())),
        k8((p.k + 7) / 8),
        tile_bytes(fp_tile::bytes(bits_of(p.format))),
        groups(p.group_scale ? (p.k + p.group - 1) / p.group : 1),
        steps_per_group(p.group_scale ? p.group / kFpStepK : 0),
        table(p.format) {}

  int64_t words() const {
    return (p.m + 15) / 16 * 16 + panels.count * panels.bytes() / 4 + blocks.kept_words(panels, p.n);
  }
  int64_t tile_codes() const { return k8 * tile_bytes; }
  int64_t step_codes() const { return kFpStepK8 * tile_bytes; }
  const uint8_t* codes(int64_t t, int64_t step) const {
    return p.weight + t * tile_codes() + step * step_codes();
  }

  void pack(int64_t panel) const {
    for (int64_t r = 0; r < panels.rows; ++r) {
      const int64_t row = panel * panels.rows + r;
      uint8_t* to = x + panel * panels.bytes() + r * kTileBytes;
      if (row >= p.m) {
        for (int64_t i = 0; i < panels.steps * kTerms; ++i)
          std::memset(to + i * panels.rows * kTileBytes, 0, kTileBytes);
        continue;
      }
      if (p.dtype == DType::f32) pack_row<float>(row, to);
      if (p.dtype == DType::bf16 && !pack_bf16_row(row, to)) pack_row<bf16>(row, to);
      if (p.dtype == DType::f16) pack_row<f16>(row, to);
    }
  }

  // Powers of two go into the exponents of the weights, where those of all groups keep clear of the ends.
  int64_t group_steps(int64_t tile, int64_t tiles) const {
    if (!p.group_scale || p.scale_fp16) return steps_per_group;
    const uint8_t* e = p.group_scale + tile * groups * fp_tile::kN;
    uint8_t low = 255, high = 0;
    for (int64_t i = 0; i < tiles * groups * fp_tile::kN; ++i)
      low = e[i] < low ? e[i] : low, high = e[i] > high ? e[i] : high;
    return low >= 127 - kFoldedPowers && high <= 127 + kFoldedPowers ? 0 : steps_per_group;
  }

  void weights(int64_t t, int64_t step, bool scaled, uint8_t* to) const {
    const uint8_t* from = codes(t, step);
    for (int64_t i = 0; i < kFpStepK8; ++i, from += tile_bytes) {
      uint8_t* rows = to + i * 4 * kTileBytes;
      if (step * kFpStepK8 + i >= k8) std::memset(rows, 0, 4 * kTileBytes);
      else if (bits_of(p.format) == 4) decode4(from, rows);
      else decode6(from, rows);
    }
    if (scaled && p.group_scale)
      add_exponents(p.group_scale + (t * groups + step / steps_per_group) * fp_tile::kN, to);
  }

  void add_group(const Piece& piece, int64_t first, const int32_t* group_sums, int64_t rows,
                 int32_t* sums) const {
    const int64_t group = first / steps_per_group, scale_bytes = p.scale_fp16 ? 2 : 1;
    const float* from = reinterpret_cast<const float*>(group_sums);
    float* to = reinterpret_cast<float*>(sums);
    for (int64_t t = 0; t < piece.tiles; ++t) {
      const uint8_t* at = p.group_scale + ((piece.tile + t) * groups + group) * fp_tile::kN * scale_bytes;
      const V scale = p.scale_fp16 ? from_fp16(load_half(at)) : from_e8m0(at);
      for (int64_t r = 0; r < rows; ++r) {
        const int64_t i = r * piece.sum_stride() + t * 16;
        const V sum = load(from + i);
        store(to + i, first ? add_signed(load(to + i), scale, sum) : mul(sum, scale));
      }
    }
  }

  void write(const int32_t* sums, int64_t row, int64_t rows, int64_t t, int64_t tiles) const {
    const float* from = reinterpret_cast<const float*>(sums);
    Epilogue e = epilogue_of(p, 1.f);
    e.x_scale = row_scale;
    finish(e, 1.f, from, tiles * 16, row, row + rows < p.m ? rows : p.m - row, t, tiles);
  }

 private:
  // The row times a power of two, its largest magnitude in [1, 2) (up to 4 at the end of the range), as
  // terms.
  template <class In>
  void pack_row(int64_t row, uint8_t* to) const {
    const In* from = static_cast<const In*>(p.x) + row * p.k;
    I largest = zero_bits();
    for (int64_t k = 0; k < p.k; k += kLanes) largest = max_abs_bits(largest, lanes_of(from, k, p.k));
    const int field = lane_max_bits(largest) >> 23;
    const int e = field == 255 ? 127 : field < 1 ? 1 : field > 253 ? 253 : field;
    row_scale[row] = bits_float(uint32_t(e) << 23);
    const V factor = set1(bits_float(uint32_t(254 - e) << 23));
    if (field == 255) pack_terms<In, false>(from, factor, to);
    else pack_terms<In, true>(from, factor, to);
  }
  template <class In, bool kFinite>
  void pack_terms(const In* from, V factor, uint8_t* to) const {
    for (int64_t step = 0; step < panels.steps; ++step, to += panels.step_bytes())
      for (int64_t half = 0; half < 2; ++half) {
        V left = mul(lanes_of(from, step * kFpStepK + half * kLanes, p.k), factor);
        for (int term = 0; term < kTerms; ++term)
          store_half(to + term * panels.rows * kTileBytes + half * 32, next_term<kFinite>(left));
      }
  }

  static inline int least_u16(__m512i v) {
    const __m256i half = _mm256_min_epu16(_mm512_castsi512_si256(v), _mm512_extracti64x4_epi64(v, 1));
    const __m128i quarter = _mm_min_epu16(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
    return uint16_t(_mm_extract_epi16(_mm_minpos_epu16(quarter), 0));
  }

  // The same by integers, 32 elements at a time: the row's power of two is added to their exponents, and what
  // falls below the normal numbers is zero, as it is to a tile. False, and nothing done, for a row that has
  // subnormal, infinite or NaN elements.
  bool pack_bf16_row(int64_t row, uint8_t* to) const {
    const uint16_t* from = static_cast<const uint16_t*>(p.x) + row * p.k;
    const __m512i sign = _mm512_set1_epi16(int16_t(0x8000));
    // the end of a row goes apart: a call in the loop would send its registers to memory
    const auto each_step = [&](const auto& f) {
      int64_t k = 0;
      for (; k + kFpStepK <= p.k; k += kFpStepK) f(load512(from + k));
      if (k == p.k) return;
      uint16_t tail[kFpStepK] = {};
      std::memcpy(tail, from + k, (p.k - k) * sizeof(*tail));
      f(load512(tail));
    };
    __m512i largest = _mm512_setzero_si512(), smallest = _mm512_set1_epi16(-1);  // less one, but for zeros
    each_step([&](__m512i lanes) {
      const __m512i v = _mm512_andnot_si512(sign, lanes);
      largest = _mm512_max_epu16(largest, v);
      smallest = _mm512_min_epu16(smallest, _mm512_sub_epi16(v, _mm512_set1_epi16(1)));
    });
    const int most = 0xffff - least_u16(_mm512_xor_si512(largest, _mm512_set1_epi16(-1)));
    const int field = most >> 7;
    if (least_u16(smallest) < 0x7f || field == 255) return false;
    const int e = field < 1 ? 1 : field > 253 ? 253 : field;
    row_scale[row] = bits_float(uint32_t(e) << 23);
    const __m512i power = _mm512_set1_epi16(int16_t((127 - e) * 128));
    const __m512i normal = _mm512_set1_epi16(int16_t((e > 127 ? e - 126 : 1) * 128));
    const int64_t step_bytes = panels.step_bytes();
    each_step([&](__m512i v) {
      const __mmask32 stays = _mm512_cmpge_epu16_mask(_mm512_andnot_si512(sign, v), normal);
      _mm512_storeu_si512(to, _mm512_maskz_add_epi16(stays, v, power));
      to += step_bytes;
    });
    return true;
  }

  // A step's weights, two of each channel in a row, times 2^(code - 127) of the channel; zeros stay.
  static inline void add_exponents(const uint8_t* e8m0, uint8_t* to) {
    const __m512i power = _mm512_sub_epi32(widen_u8(e8m0), _mm512_set1_epi32(127));
    const __m512i low = _mm512_and_si512(_mm512_slli_epi32(power, 7), _mm512_set1_epi32(0xffff));
    const __m512i exponents = _mm512_or_si512(low, _mm512_slli_epi32(power, 23));
    for (int64_t row = 0; row < kTileRows; ++row) {
      const __m512i w = load512(to + row * kTileBytes);
      const __mmask32 there = _mm512_test_epi16_mask(w, _mm512_set1_epi16(0x7fff));
      _mm512_storeu_si512(to + row * kTileBytes, _mm512_mask_add_epi16(w, there, w, exponents));
    }
  }

  // A tile row's words, 32 bits each, hold the codes of k at the top of the lower half. Two of its codes for
  // each channel become the indices of 16-bit lanes; a lookup ignores what is above an index.
  static inline __m512i words_of(const uint8_t* tile, int row) {
    return _mm512_cvtepu16_epi32(load_half(tile + 2 * fp_tile::kRowWords * row));
  }
  static inline __m512i pair(__m512i lower, __m512i upper) { return _mm512_or_si512(lower, upper); }
  inline void decode4(const uint8_t* tile, uint8_t* to) const {
    for (int row = 0; row < 2; ++row, to += 2 * kTileBytes) {
      const __m512i w = words_of(tile, row);
      const __m512i first = pair(_mm512_srli_epi32(w, 12), _mm512_slli_epi32(w, 8));
      const __m512i second = pair(_mm512_srli_epi32(w, 4), _mm512_slli_epi32(w, 16));
      _mm512_storeu_si512(to, _mm512_permutexvar_epi16(first, table.low));
      _mm512_storeu_si512(to + kTileBytes, _mm512_permutexvar_epi16(second, table.low));
    }
  }
  inline void put6(uint8_t* to, __m512i index) const {
    _mm512_storeu_si512(to, _mm512_permutex2var_epi16(table.low, index, table.high));
  }
  inline void decode6(const uint8_t* tile, uint8_t* to) const {
    const __m512i w[3] = {words_of(tile, 0), words_of(tile, 1), words_of(tile, 2)};
    for (int row = 0; row < 3; ++row)
      put6(to + row * kTileBytes, pair(_mm512_srli_epi32(w[row], 10), _mm512_slli_epi32(w[row], 12)));
    const auto bits = [](__m512i v, int mask) { return _mm512_and_si512(v, _mm512_set1_epi32(mask)); };
    const __m512i sixth = pair(bits(_mm512_slli_epi32(w[0], 2), 0x3c), bits(_mm512_srli_epi32(w[1], 2), 3));
    const __m512i seventh =
        pair(bits(_mm512_slli_epi32(w[2], 18), 0x3c0000), _mm512_slli_epi32(bits(w[1], 3), 16));
    put6(to + 3 * kTileBytes, pair(sixth, seventh));
  }
};

}  // namespace lowbit::cpu::LOWBIT_ISA
