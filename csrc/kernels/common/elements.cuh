// Eight consecutive elements of a float row: the unit in which the row kernels load, hold and store.
// The dtype is a run-time argument, the same for the whole grid: one compiled kernel serves all three, and
// the branch costs one instruction per eight elements. Loads are ld.global, not .nc: a transform may be in
// place.
#pragma once

#include "../../ptx/bits.h"
#include "../../ptx/memory.h"
#include "../../numeric/dtype.h"

namespace lowbit::kernels {

constexpr int kChunk = 8;  // elements; 16 bytes of bf16 or f16, 32 of f32

// The chunk as loaded: w[0..3] hold pairs of 16-bit elements, w[0..7] fp32.
struct RawChunk {
  uint32_t w[kChunk];
};

// Elements begin .. begin + 7 of x; zero from `count` on. kWide: x lies on 16 bytes, and so does x + count:
// whole vectors. Else one element at a time, each lane its own eight: a warp's request then touches up to
// eight times the sectors, which the L1 cache absorbs. Nothing is read past the last element either way.
template <bool kWide>
LOWBIT_DEVICE void load_chunk(RawChunk& raw, const void* x, DType dtype, int begin, int count) {
  const auto* p = static_cast<const uint8_t*>(x) + int64_t(begin) * size_of(dtype);
  if constexpr (kWide) {
    LOWBIT_UNROLL
    for (int h = 0; h < 2; ++h) {
      if (h == 1 && dtype != DType::f32) return;
      ptx::u32x4 v{};
      if (begin + 4 * h < count) v = ptx::ld_global(reinterpret_cast<const ptx::u32x4*>(p) + h);
      LOWBIT_UNROLL
      for (int i = 0; i < 4; ++i) raw.w[4 * h + i] = v[i];
    }
  } else if (dtype == DType::f32) {
    LOWBIT_UNROLL
    for (int i = 0; i < kChunk; ++i)
      raw.w[i] = begin + i < count ? ptx::ld_global(reinterpret_cast<const uint32_t*>(p) + i) : 0;
  } else {
    LOWBIT_UNROLL
    for (int i = 0; i < 4; ++i) {
      const auto* pair = reinterpret_cast<const uint16_t*>(p) + 2 * i;
      const uint32_t low = begin + 2 * i < count ? ptx::ld_global(pair) : 0;
      const uint32_t high = begin + 2 * i + 1 < count ? ptx::ld_global(pair + 1) : 0;
      raw.w[i] = low | high << 16;
    }
  }
}

// Element `at`, by itself.
LOWBIT_DEVICE float load_element(const void* x, DType dtype, int at) {
  if (dtype == DType::f32) return ptx::ld_global(static_cast<const float*>(x) + at);
  const uint16_t bits = ptx::ld_global(static_cast<const uint16_t*>(x) + at);
  return dtype == DType::bf16 ? ptx::cvt_f32_bf16(bits) : ptx::cvt_f32_f16(bits);
}

// Eight 16-bit elements.
LOWBIT_DEVICE void halves_to_float(float (&x)[kChunk], const uint32_t (&w)[4], DType dtype) {
  if (dtype == DType::bf16) {
    LOWBIT_UNROLL
    for (int i = 0; i < 4; ++i) {
      x[2 * i] = ptx::bit_cast<float>(w[i] << 16);
      x[2 * i + 1] = ptx::bit_cast<float>(w[i] & 0xffff0000u);
    }
  } else {
    LOWBIT_UNROLL
    for (int i = 0; i < 4; ++i) {
      x[2 * i] = ptx::cvt_f32_f16(uint16_t(w[i]));
      x[2 * i + 1] = ptx::cvt_f32_f16(uint16_t(w[i] >> 16));
    }
  }
}

LOWBIT_DEVICE void to_float(float (&x)[kChunk], const RawChunk& raw, DType dtype) {
  if (dtype == DType::f32) {
    LOWBIT_UNROLL
    for (int i = 0; i < kChunk; ++i) x[i] = ptx::bit_cast<float>(raw.w[i]);
  } else {
    const uint32_t w[4] = {raw.w[0], raw.w[1], raw.w[2], raw.w[3]};
    halves_to_float(x, w, dtype);
  }
}

LOWBIT_DEVICE uint16_t round_half(float x, DType dtype) {
  return dtype == DType::bf16 ? ptx::cvt_rn_bf16_f32(x) : ptx::cvt_rn_f16_f32(x);
}

LOWBIT_DEVICE uint32_t round_halves(float low, float high, DType dtype) {
  return dtype == DType::bf16 ? ptx::cvt_rn_bf16x2_f32(low, high) : ptx::cvt_rn_f16x2_f32(low, high);
}

// kCount (1, 2 or 4) consecutive elements to y + at, rounded once. wide: the place is aligned to their size.
template <int kCount>
LOWBIT_DEVICE void store_elements(void* y, DType dtype, int at, const float (&x)[kCount], bool wide) {
  if (dtype == DType::f32) {
    float* p = static_cast<float*>(y) + at;
    if (wide) {
      ptx::Vector<float, kCount> v;
      LOWBIT_UNROLL
      for (int i = 0; i < kCount; ++i) v[i] = x[i];
      return ptx::st_global(reinterpret_cast<ptx::Vector<float, kCount>*>(p), v);
    }
    LOWBIT_UNROLL
    for (int i = 0; i < kCount; ++i) ptx::st_global(p + i, x[i]);
    return;
  }
  uint16_t* p = static_cast<uint16_t*>(y) + at;
  if constexpr (kCount > 1) {
    if (wide) {
      ptx::Vector<uint32_t, kCount / 2> v;
      LOWBIT_UNROLL
      for (int i = 0; i < kCount / 2; ++i) v[i] = round_halves(x[2 * i], x[2 * i + 1], dtype);
      return ptx::st_global(reinterpret_cast<ptx::Vector<uint32_t, kCount / 2>*>(p), v);
    }
  }
  LOWBIT_UNROLL
  for (int i = 0; i < kCount; ++i) ptx::st_global(p + i, round_half(x[i], dtype));
}

// Eight elements rounded to the dtype, as they are stored.
LOWBIT_DEVICE void round_chunk(RawChunk& raw, const float (&x)[kChunk], DType dtype) {
  if (dtype == DType::f32) {
    LOWBIT_UNROLL
    for (int i = 0; i < kChunk; ++i) raw.w[i] = ptx::bit_cast<uint32_t>(x[i]);
  } else {
    LOWBIT_UNROLL
    for (int i = 0; i < 4; ++i) raw.w[i] = round_halves(x[2 * i], x[2 * i + 1], dtype);
  }
}

// Eight elements to y + begin, those before `count`; the counterpart of load_chunk.
template <bool kWide>
LOWBIT_DEVICE void store_raw(void* y, DType dtype, int begin, int count, const RawChunk& raw) {
  uint8_t* p = static_cast<uint8_t*>(y) + int64_t(begin) * size_of(dtype);
  const int left = count - begin;
  if constexpr (kWide) {
    LOWBIT_UNROLL
    for (int h = 0; h < 2; ++h)
      if (4 * h < left && (h == 0 || dtype == DType::f32))
        ptx::st_global(reinterpret_cast<ptx::u32x4*>(p) + h,
                       ptx::u32x4{{raw.w[4 * h], raw.w[4 * h + 1], raw.w[4 * h + 2], raw.w[4 * h + 3]}});
  } else if (dtype == DType::f32) {
    LOWBIT_UNROLL
    for (int i = 0; i < kChunk; ++i)
      if (i < left) ptx::st_global(reinterpret_cast<uint32_t*>(p) + i, raw.w[i]);
  } else {
    LOWBIT_UNROLL
    for (int i = 0; i < kChunk; ++i)
      if (i < left)
        ptx::st_global(reinterpret_cast<uint16_t*>(p) + i, uint16_t(raw.w[i / 2] >> (16 * (i % 2))));
  }
}

template <bool kWide>
LOWBIT_DEVICE void store_chunk(void* y, DType dtype, int begin, int count, const float (&x)[kChunk]) {
  RawChunk raw;
  round_chunk(raw, x, dtype);
  store_raw<kWide>(y, dtype, begin, count, raw);
}

}  // namespace lowbit::kernels
