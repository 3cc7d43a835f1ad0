// Weight-only GEMM, y[m, n] = (sum_k x[m, k] value(w[n, k])) * w_scale[n] (+ bias[n]) (+ residual[m, n]): 4-
// and 6-bit codes become fp32 in registers, sums are fused multiply-adds in the order of k. Included once per
// instruction set after its vec header.
//
// Every output is one chain of fma over k (per group, then over the groups), so the bits do not depend on the
// number of rows, of threads, or on the instruction set.
#pragma once

#include <type_traits>

#include "../layout/fp_tile.h"
#include "../numeric/format.h"
#include "dispatch.h"
#include "int_gemm-inl.h"

namespace lowbit::cpu::LOWBIT_ISA {

template <bool kSplit>
struct SumOf {
  using Type = Wide;
};
template <>
struct SumOf<true> {
  using Type = Split;
};

// How codes at the top of a 16-bit word become numbers: shifted right arithmetically and masked, sign,
// exponent and mantissa lie where fp16 has them, and the value is too small by 2^kPower.
enum class Through { kFp16, kBf16, kInteger };
template <int kBits_, Through kThrough_, int kShift_, int kMask_, int kPower_>
struct Decode {
  static constexpr int kBits = kBits_, kShift = kShift_, kMask = kMask_, kPower = kPower_;
  static constexpr Through kThrough = kThrough_;
  static constexpr bool kSplit = kThrough == Through::kBf16;
  using Sum = typename SumOf<kSplit>::Type;
};
using DecodeE3M2 = Decode<6, Through::kFp16, 2, 0x9f00, 12>;
using DecodeE2M3 = Decode<6, Through::kFp16, 3, 0x8f80, 14>;
using DecodeE2M1 = Decode<4, Through::kFp16, 3, 0x8e00, 14>;
using DecodeE1M2 = Decode<4, Through::kFp16, 4, 0x8700, 14>;
using DecodeE3M0 = Decode<4, Through::kFp16, 2, 0x9c00, 12>;
using DecodeInt4 = Decode<4, Through::kInteger, 12, 0xffff, 0>;

// The same with exponent and mantissa three bits lower, where bf16 has them. fp16 needs a conversion to
// become fp32; here the even and the odd words are fp32 already, but codes without exponent are fp32
// subnormals: activations come times 2^64 (kLift) to keep the products clear of them, and only CPUs that
// multiply subnormals at full speed go this way (prefers_split). Values are smaller than through fp16 by
// another 2^112, so that kLower brings sums to what they are there.
template <class D>
using ThroughBf16 =
    Decode<D::kBits, Through::kBf16, D::kShift + 3, (0x8000 | (D::kMask & 0x7fff) >> 3), D::kPower>;
constexpr float kLift = 0x1p64f, kLower = 0x1p48f;
// rows whose largest magnitude lies here lose nothing through bf16 that fp32 sums would have kept
constexpr float kSplitLow = 0x1p-20f, kSplitHigh = 0x1p40f;

template <class D>
static inline typename D::Sum spread(Half h) {
  if constexpr (D::kThrough == Through::kInteger) return from_s16(shift_right<D::kShift>(h));
  else if constexpr (D::kSplit) return split_bf16(mask(shift_right<D::kShift>(h), D::kMask));
  else return from_fp16(mask(shift_right<D::kShift>(h), D::kMask));
}

// The 16 channels of step kStep (0..7) of a tile.
template <class D, int kStep>
static inline typename D::Sum weights(const uint8_t* tile) {
  const auto row = [&](int i) { return load_half(tile + 2 * fp_tile::kRowWords * i); };
  if constexpr (D::kBits == 4) return spread<D>(shift_left<4 * (kStep % 4)>(row(kStep / 4)));
  else if constexpr (kStep < 6) return spread<D>(shift_left<6 * (kStep % 2)>(row(kStep / 2)));
  else if constexpr (kStep == 6)
    return spread<D>(either(shift_left<12>(row(0)), mask(shift_left<8>(row(1)), 0x0c00)));
  else return spread<D>(either(shift_left<12>(row(2)), mask(shift_left<10>(row(1)), 0x0c00)));
}

// acc[R][T] += one k of R rows x T tiles; x points to the R activations of this k.
template <class D, int kStep, int R, int T>
static inline void fp_step(typename D::Sum (&acc)[R][T], const uint8_t* tile, int64_t tile_stride,
                           const float* x) {
#pragma GCC unroll 2
  for (int t = 0; t < T; ++t) {
    const auto w = weights<D, kStep>(tile + t * tile_stride);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) multiply_add(acc[r][t], w, x[kStep * R + r]);
  }
}

// Takes kLift back from the sum of a group, before its scale can push it out of fp32's range.
template <class D>
static inline Wide lowered(const Wide& sum) {
  return D::kSplit ? times(sum, kLower) : sum;
}

struct FpWork {
  const uint8_t* weight;  // first tile, at k = 0
  int64_t tile_bytes, tile_stride;
  const uint8_t* scale;  // [tiles][groups][16] of the same tiles, or null
  int64_t scale_stride, group_k8;
  bool scale_fp16;
};

static inline Wide group_scales(const FpWork& w, int64_t tile, int64_t group) {
  const int64_t at = tile * w.scale_stride + group * fp_tile::kN;
  return w.scale_fp16 ? from_fp16(load_half(w.scale + 2 * at)) : from_e8m0(w.scale + at);
}

// total[r][16 t + i] += sum over k8 in [begin, end) of row r x channel i of tile t. x: [k][R] from `begin`
// on.
template <class D, int R, int T>
static void fp_multiply(const FpWork& w, int64_t begin, int64_t end, const float* x, float* total) {
  for (int64_t first = begin; first < end;) {
    const int64_t last = w.scale && first + w.group_k8 < end ? first + w.group_k8 : end;
    typename D::Sum acc[R][T];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
      for (int t = 0; t < T; ++t)
        arrange(w.scale ? zeros() : load_wide(total + (r * kTilesInCache + t) * fp_tile::kN), acc[r][t]);
    const uint8_t* tile = w.weight + first * w.tile_bytes;
    for (int64_t k8 = first; k8 < last; ++k8, tile += w.tile_bytes, x += fp_tile::kK * R) {
      prefetch_tiles<T>(tile, w.tile_stride, w.tile_bytes);
      fp_step<D, 0>(acc, tile, w.tile_stride, x);
      fp_step<D, 1>(acc, tile, w.tile_stride, x);
      fp_step<D, 2>(acc, tile, w.tile_stride, x);
      fp_step<D, 3>(acc, tile, w.tile_stride, x);
      fp_step<D, 4>(acc, tile, w.tile_stride, x);
      fp_step<D, 5>(acc, tile, w.tile_stride, x);
      fp_step<D, 6>(acc, tile, w.tile_stride, x);
      fp_step<D, 7>(acc, tile, w.tile_stride, x);
    }
#pragma GCC unroll 2
    for (int t = 0; t < T; ++t) {
      const Wide scale = w.scale ? group_scales(w, t, first / w.group_k8) : zeros();
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
        float* sum = total + (r * kTilesInCache + t) * fp_tile::kN;
        if (w.scale) add_scaled(sum, lowered<D>(in_order(acc[r][t])), scale);
        else store_wide(sum, in_order(acc[r][t]));
      }
    }
    first = last;
  }
}

// Calls fp_multiply with the row count as a constant. A few rows take two tiles at a time: their chains of
// fma are too few to fill the pipes.
template <class D, int R = kFpRows>
static inline int fp_dispatch(int64_t rows, int64_t tiles, const FpWork& w, int64_t begin, int64_t end,
                              const float* x, float* total) {
  if constexpr (R > 0) {
    if (rows < R) return fp_dispatch<D, R - 1>(rows, tiles, w, begin, end, x, total);
    if constexpr (R <= kPairedRows)
      if (tiles >= 2) return fp_multiply<D, R, 2>(w, begin, end, x, total), 2;
    fp_multiply<D, R, 1>(w, begin, end, x, total);
  }
  return 1;
}

// `power` is of the weights as the sums have them.
static inline Epilogue epilogue_of(const FpGemmParams& p, float power) {
  return {p.n, p.w_scale, power, nullptr, p.bias, 0, nullptr, nullptr, p.residual, p.y, p.dtype};
}

// The same loop order as the integer GEMM (int_gemm-inl.h): weights of 512 k and 4 tiles stay in L1 while the
// rows pass.
template <class D>
static void fp_run(const FpGemmParams& p, int64_t tile_begin, int64_t tile_end) {
  constexpr int64_t kRowBlock = kRowsInCache / kFpRows * kFpRows;
  const int64_t k8s = (p.k + 7) / 8, groups = p.group_scale ? (p.k + p.group - 1) / p.group : 1;
  const int64_t chunk = p.m <= kFpRows ? k8s : kChunkK8;  // a multiple of every group
  const int64_t tile_bytes = fp_tile::bytes(D::kBits), scale_bytes = p.scale_fp16 ? 2 : 1;
  alignas(64) float total[kRowBlock * kTilesInCache * fp_tile::kN];

  for (int64_t row = 0; row < p.m; row += kRowBlock) {
    const int64_t rows = p.m - row < kRowBlock ? p.m - row : kRowBlock;
    for (int64_t tile = tile_begin; tile < tile_end; tile += kTilesInCache) {
      const int64_t tiles = tile_end - tile < kTilesInCache ? tile_end - tile : kTilesInCache;
      __builtin_memset(total, 0, size_t(rows * kTilesInCache * fp_tile::kN) * 4);
      for (int64_t k8 = 0; k8 < k8s; k8 += chunk) {
        const int64_t end = k8 + chunk < k8s ? k8 + chunk : k8s;
        for (int64_t r = 0; r < rows; r += kFpRows) {
          const int64_t count = rows - r < kFpRows ? rows - r : kFpRows;
          const float* x = p.panels + (row + r) * k8s * fp_tile::kK + k8 * fp_tile::kK * count;
          for (int64_t t = 0; t < tiles;) {
            const uint8_t* scale =
                p.group_scale ? p.group_scale + (tile + t) * groups * fp_tile::kN * scale_bytes : nullptr;
            const FpWork w{p.weight + (tile + t) * k8s * tile_bytes,
                           tile_bytes,
                           k8s * tile_bytes,
                           scale,
                           groups * fp_tile::kN,
                           p.group / 8,
                           p.scale_fp16};
            float* sum = total + (r * kTilesInCache + t) * fp_tile::kN;
            t += fp_dispatch<D>(count, tiles - t, w, k8, end, x, sum);
          }
        }
      }
      const float lower = D::kSplit && !p.group_scale ? kLower : 1.0f;
      finish(epilogue_of(p, float(1 << D::kPower)), lower, total, kTilesInCache * fp_tile::kN, row, rows,
             tile, tiles);
    }
  }
}

// One row of x to fp32, times kLift where p.split, `stride` apart, zeros up to a multiple of 8. Returns
// whether the row may go through bf16.
template <class In>
static inline bool fp_pack_row(const FpGemmParams& p, int64_t row, int64_t stride, float* out) {
  const In* x = static_cast<const In*>(p.x) + row * p.k;
  const int64_t padded = (p.k + 7) / 8 * 8;
  const V lift = set1(p.split ? kLift : 1.0f);
  I largest = zero_bits();
  float v[kLanes];
  for (int64_t k = 0; k < p.k; k += kLanes) {
    const int64_t count = p.k - k < kLanes ? p.k - k : kLanes;
    In tail[kLanes] = {};
    if (count < kLanes) __builtin_memcpy(tail, x + k, size_t(count) * sizeof(In));
    const V value = load(count < kLanes ? tail : x + k);
    largest = max_abs_bits(largest, value);
    store(v, mul(value, lift));
    for (int i = 0; i < count; ++i) out[(k + i) * stride] = v[i];
  }
  for (int64_t k = p.k; k < padded; ++k) out[k * stride] = 0;
  const float amax = bits_float(uint32_t(lane_max_bits(largest)));
  return amax == 0 || (amax >= kSplitLow && amax <= kSplitHigh);
}

// rows by kFpRows, [k][row]
static int64_t fp_panel_words(const FpGemmParams& p) { return p.m * ((p.k + 7) / 8 * 8); }
static int64_t fp_panel_count(const FpGemmParams& p) { return (p.m + kFpRows - 1) / kFpRows; }

static bool fp_pack(const FpGemmParams& p, int64_t begin, int64_t end) {
  const int64_t padded = (p.k + 7) / 8 * 8;
  bool may_split = true;
  for (int64_t i = begin; i < end; ++i) {
    const int64_t row = i * kFpRows, rows = p.m - row < kFpRows ? p.m - row : kFpRows;
    for (int64_t r = 0; r < rows; ++r) {
      float* out = p.panels + row * padded + r;
      if (p.dtype == DType::f32) may_split &= fp_pack_row<float>(p, row + r, rows, out);
      if (p.dtype == DType::bf16) may_split &= fp_pack_row<bf16>(p, row + r, rows, out);
      if (p.dtype == DType::f16) may_split &= fp_pack_row<f16>(p, row + r, rows, out);
    }
  }
  return may_split;
}

static inline bool fp_prefers_split(const FpGemmParams& p) {
  return p.format != Format::kInt4 && prefers_split();
}

template <class D>
static inline void fp_run_float(const FpGemmParams& p, int64_t begin, int64_t end) {
  if constexpr (kHasSplit)
    if (p.split) return fp_run<ThroughBf16<D>>(p, begin, end);
  fp_run<D>(p, begin, end);
}

static void fp_tiles(const FpGemmParams& p, int64_t begin, int64_t end) {
  switch (p.format) {
    case Format::kE3M2:
      return fp_run_float<DecodeE3M2>(p, begin, end);
    case Format::kE2M3:
      return fp_run_float<DecodeE2M3>(p, begin, end);
    case Format::kE2M1:
      return fp_run_float<DecodeE2M1>(p, begin, end);
    case Format::kE1M2:
      return fp_run_float<DecodeE1M2>(p, begin, end);
    case Format::kE3M0:
      return fp_run_float<DecodeE3M0>(p, begin, end);
    case Format::kInt4:
      return fp_run<DecodeInt4>(p, begin, end);
    default:
      return;
  }
}

}  // namespace lowbit::cpu::LOWBIT_ISA
