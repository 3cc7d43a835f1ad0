// FP4 codes as integers: value times a power of two fits int8, so products of FP4 codes are exact integer
// products and the powers of two go into the scales.
//
// Written out by hand and checked against the codec below: the kernels read these tables, never the codec.
#pragma once

#include <cstdint>

#include "format.h"

namespace lowbit {

struct Fp4Table {
  int8_t value[16];  // of each code, times int_scale; codes 8..15 are the negatives of 0..7
  int max;           // largest magnitude among them; value + max is unsigned
  int int_scale;     // a power of two
};

constexpr Fp4Table kE2M1Table{{0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12}, 12, 2};
constexpr Fp4Table kE1M2Table{{0, 1, 2, 3, 4, 5, 6, 7, 0, -1, -2, -3, -4, -5, -6, -7}, 7, 4};
constexpr Fp4Table kE3M0Table{{0, 1, 2, 4, 8, 16, 32, 64, 0, -1, -2, -4, -8, -16, -32, -64}, 64, 4};

// Null for a format that is not a float of four bits.
static constexpr const Fp4Table* fp4_table(Format f) {
  return f == Format::kE2M1   ? &kE2M1Table
         : f == Format::kE1M2 ? &kE1M2Table
         : f == Format::kE3M0 ? &kE3M0Table
                              : nullptr;
}

// The magnitudes of codes 0..3 and 4..7 as bytes, for a lookup in two registers.
struct Fp4Magnitudes {
  uint32_t low, high;
};
static constexpr Fp4Magnitudes magnitudes_of(const Fp4Table& t) {
  Fp4Magnitudes m{};
  for (int code = 0; code < 4; ++code)
    m.low |= uint32_t(t.value[code]) << (8 * code), m.high |= uint32_t(t.value[code + 4]) << (8 * code);
  return m;
}
static_assert(magnitudes_of(kE2M1Table).low == 0x03020100 && magnitudes_of(kE2M1Table).high == 0x0c080604);

template <class F>
static constexpr bool is_table_of(const Fp4Table& t) {
  for (int code = 0; code < 16; ++code)
    if (t.value[code] != F::to_int(code)) return false;
  return F::kBits == 4 && t.max == F::kMaxSteps && t.int_scale == F::kIntScale;
}
static_assert(is_table_of<E2M1>(kE2M1Table) && is_table_of<E1M2>(kE1M2Table) &&
              is_table_of<E3M0>(kE3M0Table));

}  // namespace lowbit
