// Quantise rows of floats to FP4 codes. One source for sm_80 and every later card.
#pragma once

#include "codes.cuh"

namespace lowbit::kernels::quantize {

// How a row becomes FP4 codes; the arithmetic of Minifloat::encode.
struct Fp4Coder {
  const Fp4Params& p;
  bool wide;

  LOWBIT_DEVICE bool fixed() const { return false; }
  LOWBIT_DEVICE float* scales() const { return p.scale; }
  LOWBIT_DEVICE uint8_t* row(int64_t r) const { return static_cast<uint8_t*>(p.q) + r * p.stride; }
  LOWBIT_DEVICE Scale scale(uint32_t most) const {
    const float largest = ptx::bit_cast<float>(p.rounding.top);
    const float dynamic = ptx::div_rn(ptx::mul_rn(ptx::bit_cast<float>(most), p.clip), largest);
    return finish_scale(most, p.fixed_scale ? ptx::ld_global<ptx::Load::kNc>(p.fixed_scale) : dynamic);
  }
  LOWBIT_DEVICE void store(uint8_t* q, int chunk, const float (&x)[kChunk], float inverse,
                           bool active) const {
    constexpr float kToInteger = 8388608.f;  // 2^23 plus x has the nearest even integer to x in its low bits
    const int m = p.rounding.mantissa_bits, first = p.rounding.first_binade;
    uint32_t word = 0;
    LOWBIT_UNROLL
    for (int i = 0; i < kChunk; ++i) {
      const uint32_t y = ptx::bit_cast<uint32_t>(ptx::mul_rn(x[i], inverse)), bits = y & 0x7fffffffu;
      const uint32_t a = bits < p.rounding.top ? bits : p.rounding.top;
      const int field = int(a >> 23) > first ? int(a >> 23) : first;
      const float per_step = ptx::bit_cast<float>(uint32_t(254 + m - field) << 23);
      const float steps = ptx::mul_rn(ptx::bit_cast<float>(a), per_step);  // exact, 0 .. 2^(m + 1)
      const uint32_t n = ptx::bit_cast<uint32_t>(ptx::add_rn(steps, kToInteger)) - 0x4b000000u;
      const uint32_t magnitude = n + (uint32_t(field - first) << m);  // a carry moves to the next binade
      word |= (magnitude | (y >> 31) << 3) << (4 * i);
    }
    if (inverse == 0.f) word = 0;  // x may be NaN there
    uint8_t* to = q + 4 * chunk;
    const int left = (int(p.k) + 1) / 2 - 4 * chunk;  // x is zero past k, and so is the pad nibble
    if (active && wide && left >= 4) ptx::st_global(reinterpret_cast<uint32_t*>(to), word);
    else if (active) store_bytes(to, word, left);
  }
};

// v[i] * 2^exponent[begin + i].
template <bool kWide>
LOWBIT_DEVICE void multiply_powers(float (&v)[kChunk], const int8_t* exponent, int begin, int count) {
  uint32_t bytes[2] = {};
  if constexpr (kWide) {
    if (begin >= count) return;
    const auto both = ptx::ld_global<ptx::Load::kNc>(reinterpret_cast<const ptx::u32x2*>(exponent + begin));
    bytes[0] = both[0], bytes[1] = both[1];
  } else {
    LOWBIT_UNROLL
    for (int i = 0; i < kChunk; ++i)
      if (begin + i < count)
        bytes[i / 4] |=
            uint32_t(ptx::ld_global<ptx::Load::kNc>(reinterpret_cast<const uint8_t*>(exponent) + begin + i))
            << (8 * (i % 4));
  }
  LOWBIT_UNROLL
  for (int i = 0; i < kChunk; ++i) {
    const int e = int8_t(bytes[i / 4] >> (8 * (i % 4)));
    // 2^-127 and 2^-128 are subnormal
    const uint32_t power = e > -127 ? uint32_t(e + 127) << 23 : 0x00400000u >> (-127 - e);
    v[i] = ptx::mul_rn(v[i], ptx::bit_cast<float>(power));
  }
}

template <int kVectors, bool kWide>
LOWBIT_KERNEL(kMaxThreads, 1)
quantize_fp4_kernel(const Fp4Launch a) {
  const Fp4Params& p = a.p;
  const Team& team = a.c.team;
  const int thread = ptx::thread_index() % team.size, in_block = ptx::thread_index() / team.size;
  const int64_t row = int64_t(ptx::block_index_x()) * team.rows + in_block;
  const bool active = row < p.rows;
  const char* x = static_cast<const char*>(p.x) + (active ? row : 0) * p.x_stride * size_of(p.dtype);
  const int count = active ? int(p.k) : 0;
  quantize_rows<kVectors, kVectors == kLongVectors>(
      Fp4Coder{p, a.c.wide_store}, team, int(a.c.chunks), row, active, ptx::dynamic_smem<uint32_t>(),
      [&](float (&v)[kVectors][kChunk], int round) {
        const int first = thread + round * kVectors * team.size;
        RawChunk raw[kVectors];
        LOWBIT_UNROLL
        for (int i = 0; i < kVectors; ++i)
          load_chunk<kWide>(raw[i], x, p.dtype, (first + i * team.size) * kChunk, count);
        LOWBIT_UNROLL
        for (int i = 0; i < kVectors; ++i) to_float(v[i], raw[i], p.dtype);
        if (p.exponent) {
          LOWBIT_UNROLL
          for (int i = 0; i < kVectors; ++i)
            multiply_powers<kWide>(v[i], p.exponent, (first + i * team.size) * kChunk, count);
        }
      });
}

}  // namespace lowbit::kernels::quantize
