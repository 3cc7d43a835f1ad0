// INT4 keys and values: asymmetric, fp16 scale and zero per token and head. One source for sm_80 and every
// later card. A team of lanes owns a head and goes over it eight elements per lane at a time; a head longer
// than 256 is read twice, the second time from cache.
#pragma once

#include "../../ptx/warp.h"
#include "../common/elements.cuh"
#include "config.h"

namespace lowbit::kernels::kv_cache {

// Floats as integers in the same order, for the warp's integer reductions. Its own inverse.
LOWBIT_DEVICE int32_t ordered(int32_t bits) { return bits ^ ((bits >> 31) & 0x7fffffff); }
LOWBIT_DEVICE int32_t ordered(float x) { return ordered(ptx::bit_cast<int32_t>(x)); }
LOWBIT_DEVICE float unordered(int32_t key) { return ptx::bit_cast<float>(ordered(key)); }

struct Range {
  int32_t low, high;  // ordered: NaN and infinity lie at the ends
};

// Of the team, in all its lanes. Collective over the warp.
LOWBIT_DEVICE Range team_range(Range r, int size) {
  if (size == 32) return {ptx::redux_sync_min_s32(r.low), ptx::redux_sync_max_s32(r.high)};
  for (int step = size / 2; step > 0; step /= 2) {
    const int32_t low = ptx::shfl_sync_xor(r.low, step), high = ptx::shfl_sync_xor(r.high, step);
    r = {low < r.low ? low : r.low, high > r.high ? high : r.high};
  }
  return r;
}

struct Affine {
  uint16_t scale, zero;  // fp16
  float z, inverse;      // inverse 0: all codes are zero
};

LOWBIT_DEVICE Affine affine_of(const Range& r, float clip) {
  const float low = ptx::mul_rn(unordered(r.low), clip), high = ptx::mul_rn(unordered(r.high), clip);
  Affine a{ptx::cvt_rn_f16_f32(ptx::div_rn(ptx::sub_rn(high, low), 15.f)), ptx::cvt_rn_f16_f32(low), 0.f,
           0.f};
  const bool fits = (a.scale & 0x7c00) != 0x7c00 && (a.zero & 0x7c00) != 0x7c00;
  if (!fits) a.scale = a.zero = 0x7e00;  // NaN
  const float s = ptx::cvt_f32_f16(a.scale);
  a.z = ptx::cvt_f32_f16(a.zero);
  if (fits && s > 0.f) a.inverse = ptx::div_rn(1.f, s);
  return a;
}

// Codes 0..15 of eight elements as nibbles, the first lowest.
LOWBIT_DEVICE uint32_t nibbles(const float (&x)[kChunk], const Affine& a) {
  uint32_t word = 0;
  LOWBIT_UNROLL
  for (int i = 0; i < kChunk; ++i) {
    const float v = ptx::mul_rn(ptx::sub_rn(x[i], a.z), a.inverse);
    const float code =
        ptx::add_rn(ptx::min_f32(ptx::max_f32(v, 0.f), 15.f), 12582912.f);  // see quantize/codes.cuh
    word |= (ptx::bit_cast<uint32_t>(code) & 15u) << (4 * i);
  }
  return a.inverse == 0.f ? 0 : word;
}

LOWBIT_DEVICE void load_floats(float (&x)[kChunk], const void* row, DType dtype, int begin, int count,
                               bool wide) {
  RawChunk raw;
  if (wide) load_chunk<true>(raw, row, dtype, begin, count);
  else load_chunk<false>(raw, row, dtype, begin, count);
  to_float(x, raw, dtype);
}

LOWBIT_KERNEL(kThreads, 4)
kv4_quantize_kernel(const Launch a) {
  const Params& p = a.p;
  const Team& team = a.c.team;
  const int thread = ptx::thread_index() & (team.size - 1), d = int(p.d);
  const int64_t row = int64_t(ptx::block_index_x()) * team.rows + ptx::thread_index() / team.size;
  const bool active = row < p.rows;
  const int count = active ? d : 0;
  const void* x = static_cast<const uint8_t*>(p.x) + (active ? row : 0) * d * size_of(p.dtype);
  float v[kChunk];
  Range range{0x7fffffff, -0x7fffffff - 1};
  for (int round = 0; round < team.rounds; ++round) {
    const int begin = (thread + round * team.size) * kChunk;
    load_floats(v, x, p.dtype, begin, count, a.c.wide);
    LOWBIT_UNROLL
    for (int i = 0; i < kChunk; ++i) {
      const int32_t key = ordered(v[i]);
      if (begin + i < count) range = {key < range.low ? key : range.low, key > range.high ? key : range.high};
    }
  }
  const Affine affine = affine_of(team_range(range, team.size), p.clip);
  if (active && thread == 0)
    ptx::st_global(reinterpret_cast<uint32_t*>(p.params) + row, affine.scale | uint32_t(affine.zero) << 16);
  uint8_t* packed = p.packed + (active ? row : 0) * ((d + 1) / 2);
  for (int round = 0; round < team.rounds; ++round) {
    const int begin = (thread + round * team.size) * kChunk;
    if (team.rounds > 1) load_floats(v, x, p.dtype, begin, count, a.c.wide);
    uint32_t word = nibbles(v, affine);
    if (begin >= count) continue;
    if (a.c.wide) {
      ptx::st_global(reinterpret_cast<uint32_t*>(packed + begin / 2), word);
      continue;
    }
    LOWBIT_UNROLL
    for (int i = 0; i < 4; ++i)
      if (begin + 2 * i < count) {
        const uint32_t keep = begin + 2 * i + 1 < count ? 0xff : 0x0f;  // the pad of an odd d is 0
        ptx::st_global(packed + begin / 2 + i, uint8_t((word >> (8 * i)) & keep));
      }
  }
}

LOWBIT_KERNEL(kThreads, 4)
kv4_dequantize_kernel(const Launch a) {
  const Params& p = a.p;
  const Team& team = a.c.team;
  const int thread = ptx::thread_index() & (team.size - 1), d = int(p.d);
  const int64_t row = int64_t(ptx::block_index_x()) * team.rows + ptx::thread_index() / team.size;
  if (row >= p.rows) return;
  const uint8_t* packed = p.packed + row * ((d + 1) / 2);
  void* y = static_cast<uint8_t*>(p.y) + row * d * size_of(p.dtype);
  const uint32_t params = ptx::ld_global<ptx::Load::kNc>(reinterpret_cast<const uint32_t*>(p.params) + row);
  const float scale = ptx::cvt_f32_f16(uint16_t(params)), zero = ptx::cvt_f32_f16(uint16_t(params >> 16));
  for (int begin = thread * kChunk; begin < d; begin += team.size * kChunk) {
    uint32_t word = 0;
    if (a.c.wide) {
      word = ptx::ld_global<ptx::Load::kNc>(reinterpret_cast<const uint32_t*>(packed + begin / 2));
    } else {
      LOWBIT_UNROLL
      for (int i = 0; i < 4; ++i)
        if (begin + 2 * i < d)
          word |= uint32_t(ptx::ld_global<ptx::Load::kNc>(packed + begin / 2 + i)) << (8 * i);
    }
    float v[kChunk];
    LOWBIT_UNROLL
    for (int i = 0; i < kChunk; ++i) {
      // 2^23 + code, less 2^23, is the code: no conversion instruction
      const float code =
          ptx::sub_rn(ptx::bit_cast<float>(0x4b000000u | ((word >> (4 * i)) & 15u)), 8388608.f);
      v[i] = ptx::fma_rn(code, scale, zero);  // the product has 15 bits: one rounding, as the contract's two
    }
    if (a.c.wide) store_chunk<true>(y, p.dtype, begin, d, v);
    else store_chunk<false>(y, p.dtype, begin, d, v);
  }
}

}  // namespace lowbit::kernels::kv_cache
